"""INT8 modules: plain uint8 codes in, plain uint8 codes out, the numbers of docs/numerics.md.

Shapes are those of the float modules, dimension 1 the channels; channels_last strides are the fast ones. All of them
can be scripted. They are made by `octet.convert` or by `to_int8` of a QAT block; the constructors take what
`octet.ops.fold` gives and the numbers of the grids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops


class PoolGeometry(NamedTuple):
    """An average pool over windows, or, with an empty kernel_size, to output_size. divisor_override 0: none."""

    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int
    output_size: list[int]


def geometry(conv: nn.Module) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a float convolution, padding in numbers.

    Raises ValueError for a padding mode or a "same" padding that is not the same zeros on both sides.
    """
    name = type(conv).__name__
    if conv.padding_mode != "zeros":
        raise ValueError(f"{name}: padding_mode must be 'zeros' (got {conv.padding_mode!r})")
    padding = conv.padding
    if padding == "valid":
        padding = [0] * len(conv.kernel_size)
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError(f"{name}: padding='same' must be equal on both sides (got kernel {conv.kernel_size})")
        padding = [span // 2 for span in spans]
    return list(conv.stride), list(padding), list(conv.dilation), conv.groups


def plain_strides(x: Tensor) -> Tensor:
    """x in the strides of a new tensor: `contiguous` keeps others where dimensions of size 1 leave a choice."""
    return x.reshape(-1).view(x.shape)


class Quantize(nn.Module):
    """Float to codes: rule 1. Any float dtype and shape in."""

    def __init__(self, scale: float, zero_point: int, qmin: int, qmax: int) -> None:
        super().__init__()
        self.qmin, self.qmax = qmin, qmax
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.quantize_per_tensor(x, self.scale, self.zero_point, self.qmin, self.qmax, torch.uint8)

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"


class Dequantize(nn.Module):
    """Codes to float32: scale * (q - zero_point), in contiguous strides.

    Float kernels round differently at the ends of their loops, so a float part gets the strides of the QAT model.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return plain_strides(ops.dequantize_per_tensor(x, self.scale, self.zero_point))

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"


class _Weighted(nn.Module):
    """Buffers `weight` (int8), `bias` (int32), `multiplier` (float32 per output channel): rules 5 and 6."""

    def __init__(
        self, weight: Tensor, bias: Tensor, multiplier: Tensor, x_zero_point: int, y_zero_point: int, lo: int, hi: int
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())
        self.register_buffer("multiplier", multiplier.detach())
        self.x_zero_point, self.y_zero_point, self.lo, self.hi = x_zero_point, y_zero_point, lo, hi

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}, zero_points=({self.x_zero_point}, {self.y_zero_point})"


class Conv2d(_Weighted):
    """Integer convolution; padding contributes the code of zero."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        multiplier: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        x_zero_point: int,
        y_zero_point: int,
        lo: int,
        hi: int,
    ) -> None:
        super().__init__(weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.int8_conv(
            x,
            self.weight,
            self.bias,
            self.multiplier,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.x_zero_point,
            self.y_zero_point,
            self.lo,
            self.hi,
        )


class Conv1d(Conv2d):
    """Integer convolution over one dimension."""


class Conv3d(Conv2d):
    """Integer convolution over three dimensions."""


CONVOLUTIONS: dict[int, type[Conv2d]] = {3: Conv1d, 4: Conv2d, 5: Conv3d}


class Linear(_Weighted):
    """Integer matrix product over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.int8_linear(
            x, self.weight, self.bias, self.multiplier, self.x_zero_point, self.y_zero_point, self.lo, self.hi
        )


class BatchNorm(_Weighted):
    """A batch norm of its own: a depthwise 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.dim() == 2
        if flat:
            x = x.unsqueeze(-1)
        ones = [1] * (x.dim() - 2)
        zeros = [0] * (x.dim() - 2)
        y = ops.int8_conv(
            x,
            self.weight,
            self.bias,
            self.multiplier,
            ones,
            zeros,
            ones,
            x.size(1),
            self.x_zero_point,
            self.y_zero_point,
            self.lo,
            self.hi,
        )
        return y.squeeze(-1) if flat else y


class Add(nn.Module):
    """a + b or a - b: rule 10. The ratios are exact float32 values."""

    def __init__(
        self, a_zero_point: int, a_ratio: float, b_zero_point: int, b_ratio: float, y_zero_point: int, lo: int, hi: int
    ) -> None:
        super().__init__()
        self.a_zero_point, self.a_ratio = a_zero_point, a_ratio
        self.b_zero_point, self.b_ratio = b_zero_point, b_ratio
        self.y_zero_point, self.lo, self.hi = y_zero_point, lo, hi

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.int8_add(
            a,
            b,
            self.a_zero_point,
            self.a_ratio,
            self.b_zero_point,
            self.b_ratio,
            self.y_zero_point,
            self.lo,
            self.hi,
        )


class _Pool(nn.Module):
    def __init__(
        self,
        pool: PoolGeometry,
        x_scale: float,
        x_zero_point: int,
        y_scale: float,
        y_zero_point: int,
        lo: int,
        hi: int,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding
        self.ceil_mode, self.count_include_pad = pool.ceil_mode, pool.count_include_pad
        self.divisor_override, self.output_size = pool.divisor_override, pool.output_size
        self.x_scale, self.x_zero_point = x_scale, x_zero_point
        self.y_scale, self.y_zero_point = y_scale, y_zero_point
        self.lo, self.hi = lo, hi


class AvgPool(_Pool):
    """Average over windows, in one, two or three dimensions: rule 8."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.int8_avg_pool(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            self.x_scale,
            self.x_zero_point,
            self.y_scale,
            self.y_zero_point,
            self.lo,
            self.hi,
        )


class AdaptiveAvgPool(_Pool):
    """Average to a given size."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.int8_adaptive_avg_pool(
            x,
            self.output_size,
            self.x_scale,
            self.x_zero_point,
            self.y_scale,
            self.y_zero_point,
            self.lo,
            self.hi,
        )


class MaxPool(nn.Module):
    """Largest code of each window; the grid stays."""

    def __init__(
        self, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode = ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return ops.int8_max_pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class Clamp(nn.Module):
    """ReLU or ReLU6 that no operator could take in; the grid stays."""

    def __init__(self, lo: int, hi: int) -> None:
        super().__init__()
        self.lo, self.hi = lo, hi

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.lo, self.hi)


class Cat(nn.Module):
    """Concatenation of codes on one grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors, self.dim)


class Pad(nn.Module):
    """Constant padding with zero, that is, with its code. `pad` as for `torch.nn.functional.pad`."""

    def __init__(self, pad: list[int], zero_point: int) -> None:
        super().__init__()
        self.pad, self.zero_point = pad, zero_point

    def forward(self, x: Tensor) -> Tensor:
        return torch.constant_pad_nd(x, self.pad, self.zero_point)


class Reshape(nn.Module):
    """Other sizes behind the batch, whose size is free. Codes or floats."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape([x.size(0)] + self.sizes)  # noqa: RUF005 (TorchScript knows no stars)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


class UpsampleNearest(nn.Module):
    """Every value again and again along the spatial dimensions. Codes or floats."""

    def __init__(self, factors: list[int]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=[float(f) for f in self.factors], mode="nearest")

    def extra_repr(self) -> str:
        return f"factors={self.factors}"
