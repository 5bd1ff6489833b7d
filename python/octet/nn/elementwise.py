"""QAT modules without weights: `Add`, `Cat`, `ReLU6`, `ToFloat`; and batch norm on its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import ops
from . import int8
from .block import Activation, Block, NormBlock, refer
from .fake_quantize import FakeQuantize


class Add(Block):
    """a + b or a - b of one shape, then maybe a ReLU: rule 10 of docs/numerics.md.

    The scales of the three grids must be odd multiples of one unit. `prepare` sees to that; by hand, `octet.nn.bind`.

    Args:
        a, b: the grids of the operands.
        subtract: a - b.
    """

    def __init__(
        self, a: FakeQuantize | None = None, b: FakeQuantize | None = None, subtract: bool = False, **block: Any
    ) -> None:
        super().__init__(**block)
        self.subtract = subtract
        refer(self, "a", a)
        refer(self, "b", b)

    def inputs(self) -> list[FakeQuantize | None]:
        return [self.a, self.b]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        operands = [value for grid in self.inputs() for value in _with_steps(grid or self.output)]
        alpha = -1.0 if self.subtract else 1.0
        args = (a, b, alpha, int(self.activation), *operands, *_with_steps(self.output))
        y, low, high = ops.add_block(*args, self.active, self.output.observes)  # keeps one bit per element
        self._observe(low, high, y)
        return y

    def to_int8(self) -> nn.Module:
        steps = int(self.output.steps)
        sign = -1 if self.subtract else 1
        a, b = (int(grid.zero_point) for grid in self.inputs())
        ratio_a, ratio_b = int(self.a.steps) / steps, sign * int(self.b.steps) / steps
        return int8.Add(a, _float32(ratio_a), b, _float32(ratio_b), int(self.output.zero_point), *self._bounds())


class AddReLU(Add):
    """relu(a + b)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, activation=kwargs.pop("activation", Activation.RELU), **kwargs)


class Cat(nn.Module):
    """Concatenation: all operands and the result are on one grid, so every producer must have been given it.

    Args:
        grid: the one grid, owned by one of the producers.
        dim: where to concatenate.
    """

    def __init__(self, grid: FakeQuantize, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        refer(self, "output", grid)

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors, self.dim)

    def to_int8(self) -> nn.Module:
        return int8.Cat(self.dim)


class ReLU6(Block):
    """ReLU6 that no block could take in: in and out are on one grid, whose code for 6 is the highest that comes out."""

    def __init__(self, grid: FakeQuantize) -> None:
        super().__init__(output=grid, activation=Activation.RELU6)

    def inputs(self) -> list[FakeQuantize | None]:
        return [self.output]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(x)
        return ops.fake_quantize_per_tensor(y, *self.output.grid()) if self.active else y

    def to_int8(self) -> nn.Module:
        return int8.Clamp(*self._bounds())


class ToFloat(nn.Module):
    """Where values leave their grid for a part in float. In evaluation mode they get the strides of the INT8 model.

    Float kernels round differently at the ends of their loops, so strides show in the last bit of what they give.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else int8.plain_strides(x)


class _BatchNormBlock(NormBlock):
    """Batch norm that follows no convolution, then maybe a ReLU: a depthwise 1x1 convolution, rule 11."""

    norm_type: type[_BatchNorm]
    dims: int

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        input: FakeQuantize | None = None,
        **block: Any,
    ) -> None:
        bn = self.norm_type(channels, eps, momentum)
        super().__init__(bn, None, **block)
        self.bn = bn
        refer(self, "input", input)

    @classmethod
    def wrap(
        cls, bn: _BatchNorm, activation: int = Activation.NONE, *, input: FakeQuantize, **block: Any
    ) -> _BatchNormBlock:
        """A block over a batch norm that stays where it is."""
        wrapped = cls.__new__(cls)
        NormBlock.__init__(wrapped, bn, None, activation=activation, **block)
        refer(wrapped, "bn", bn)
        refer(wrapped, "input", input)
        return wrapped

    def inputs(self) -> list[FakeQuantize | None]:
        return [self.input]

    def forward(self, x: Tensor) -> Tensor:
        grids = (*self._grid(self.input), *self.output.grid())
        flags = (self.active, self.batch_stats, self.output.observes)
        args = (*self._norm(), int(self.activation), *grids, *flags, self.process_group)
        return self._finish(self._run(ops.batch_norm_block, x, *args))

    def to_int8(self) -> nn.Module:
        ones = torch.ones(self.bn.num_features, 1, *[1] * self.dims, device=self.output.scale.device)
        folded = ops.fold(ones, None, *self._norm(), self.input.scale, self.output.scale, 8, True)
        return int8.BatchNorm(*folded, int(self.input.zero_point), int(self.output.zero_point), *self._bounds())


class BatchNorm1d(_BatchNormBlock):
    norm_type = nn.BatchNorm1d
    dims = 1


class BatchNorm2d(_BatchNormBlock):
    norm_type = nn.BatchNorm2d
    dims = 2


class BatchNorm3d(_BatchNormBlock):
    norm_type = nn.BatchNorm3d
    dims = 3


def batch_norm_type(dims: int) -> type[_BatchNormBlock]:
    """The block for batch norm of tensors with so many dimensions."""
    return {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}[dims]


def _with_steps(grid: FakeQuantize) -> tuple[Tensor, Tensor, Tensor, int, int]:
    return grid.scale, grid.zero_point, grid.steps, grid.qmin, grid.qmax


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float32))
