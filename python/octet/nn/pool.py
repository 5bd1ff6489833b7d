"""QAT average pools, which are blocks, and the max pool, which stays on the grid of its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import ops
from ..spec import Spec
from . import int8
from .block import Block, refer
from .fake_quantize import FakeQuantize


class _AvgPool(Block):
    """An average pool with a grid of its own for the result: rule 8 of docs/numerics.md.

    Args:
        as for the float pool, and `input`: the grid of the operand; `output`, `activations` as in `Block`.
    """

    dims = 2

    def __init__(
        self,
        pool: int8.PoolGeometry,
        input: FakeQuantize | None = None,
        output: FakeQuantize | None = None,
        activations: Spec | None = None,
    ) -> None:
        super().__init__(output, activations)
        self.pool = pool
        refer(self, "input", input)

    def inputs(self) -> list[FakeQuantize | None]:
        return [self.input]

    def forward(self, x: Tensor) -> Tensor:
        grids = (*self._grid(self.input), *self.output.grid())
        y, low, high = ops.avg_pool_block(x, *self.pool, *grids, self.active, self.output.observes)
        self._observe(low, high, y)
        return y

    def to_int8(self) -> nn.Module:
        grids = (
            float(self.input.scale),
            int(self.input.zero_point),
            float(self.output.scale),
            int(self.output.zero_point),
        )
        kind = int8.AvgPool if self.pool.kernel_size else int8.AdaptiveAvgPool
        return kind(self.pool, *grids, *self._bounds())


def _spread(value: int | tuple[int, ...], dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


class AvgPool2d(_AvgPool):
    """Average over windows; arguments as for `nn.AvgPool2d`."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        **block: Any,
    ) -> None:
        sizes = (_spread(v, self.dims) for v in (kernel_size, kernel_size if stride is None else stride, padding))
        super().__init__(int8.PoolGeometry(*sizes, ceil_mode, count_include_pad, divisor_override or 0, []), **block)


class AvgPool1d(AvgPool2d):
    """Average over windows; arguments as for `nn.AvgPool1d`."""

    dims = 1


class AvgPool3d(AvgPool2d):
    """Average over windows; arguments as for `nn.AvgPool3d`."""

    dims = 3


class AdaptiveAvgPool2d(_AvgPool):
    """Average to a given size; `output_size` as for `nn.AdaptiveAvgPool2d`, without None."""

    def __init__(self, output_size: int | tuple[int, ...], **block: Any) -> None:
        super().__init__(int8.PoolGeometry([], [], [], False, True, 0, _spread(output_size, self.dims)), **block)


class AdaptiveAvgPool1d(AdaptiveAvgPool2d):
    """Average to a given length."""

    dims = 1


class AdaptiveAvgPool3d(AdaptiveAvgPool2d):
    """Average to a given size."""

    dims = 3


class Mean2d(AdaptiveAvgPool2d):
    """`x.mean((2, 3))`: a global average pool without the dimensions of size 1 that it leaves."""

    def __init__(self, output_size: int = 1, **block: Any) -> None:
        super().__init__(output_size, **block)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)

    def to_int8(self) -> nn.Module:
        return nn.Sequential(super().to_int8(), nn.Flatten(1))


class Mean1d(Mean2d):
    """`x.mean(2)`."""

    dims = 1


class Mean3d(Mean2d):
    """`x.mean((2, 3, 4))`."""

    dims = 3


class MaxPool(nn.Module):
    """The largest value of each window, in 1 to 3 dimensions; keeps one byte per output for backward."""

    def __init__(
        self, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
    ) -> None:
        super().__init__()
        self.windows = (kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool(x, *self.windows)

    def to_int8(self) -> nn.Module:
        return int8.MaxPool(*self.windows)


AVERAGE_POOLS: dict[int, type[AvgPool2d]] = {1: AvgPool1d, 2: AvgPool2d, 3: AvgPool3d}
ADAPTIVE_POOLS: dict[int, type[AdaptiveAvgPool2d]] = {1: AdaptiveAvgPool1d, 2: AdaptiveAvgPool2d, 3: AdaptiveAvgPool3d}
MEANS: dict[int, type[Mean2d]] = {1: Mean1d, 2: Mean2d, 3: Mean3d}
