"""Observers on their own, for statistics by hand. Grids of a model are `FakeQuantize` modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import ops


class MinMaxObserver(nn.Module):
    """Keeps the smallest and the largest value seen; forward returns its input.

    Args:
        channels: None for one range of the whole tensor, else the size of `axis`: one range per channel.
        axis: the channel dimension.

    Buffers `min`, `max`: float32 [] or [channels], +inf and -inf while nothing was seen. A batch with NaN or inf (in a
    channel) leaves the range (of the channel) as it was.
    """

    observer = "min_max"

    def __init__(self, channels: int | None = None, axis: int = 0) -> None:
        super().__init__()
        self.channels, self.axis = channels, axis
        self.averaging_constant = 1.0
        shape = () if channels is None else (channels,)
        self.register_buffer("min", torch.full(shape, math.inf))
        self.register_buffer("max", torch.full(shape, -math.inf))

    def forward(self, x: Tensor) -> Tensor:
        data = x.detach()
        if self.channels is None:
            low, high = ops.min_max(data)
        else:
            if x.size(self.axis) != self.channels:
                raise ValueError(
                    f"{type(self).__name__}: input.size({self.axis}) must be {self.channels} (got {x.size(self.axis)})"
                )
            low, high = ops.min_max_per_channel(data, self.axis)
        ops.update_range_(self.min, self.max, low, high, self.observer, self.averaging_constant)
        return x

    def calculate_qparams(self, qmin: int, qmax: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) of the range, in the shape of `min`."""
        return ops.calculate_qparams(self.min, self.max, qmin, qmax, symmetric)

    def extra_repr(self) -> str:
        return "" if self.channels is None else f"channels={self.channels}, axis={self.axis}"


class MovingAverageObserver(MinMaxObserver):
    """Follows the range of the batches: range += averaging_constant * (batch range - range).

    Args:
        averaging_constant: weight of the newest batch, in (0, 1]; the first batch counts in full.
        channels, axis: as in `MinMaxObserver`.
    """

    observer = "moving_average"

    def __init__(self, averaging_constant: float = 0.01, channels: int | None = None, axis: int = 0) -> None:
        super().__init__(channels, axis)
        self.averaging_constant = averaging_constant
