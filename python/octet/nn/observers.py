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


class _HistogramObserver(nn.Module):
    """Counts all values in a histogram, and chooses a range from it; forward returns its input.

    The counts, and so the range, do not depend on how the data come in batches or on their order. A batch with NaN or
    inf (in a channel) changes nothing (in the channel).

    Args:
        channels: None for one histogram of the whole tensor, else the size of `axis`: one per channel.
        axis: the channel dimension.

    Buffers: `histogram` int64 [8192] or [channels, 8192]; `exponent` int32 [] or [channels], the bins being
    2^exponent wide.
    """

    observer: str
    percentile = 100.0

    def __init__(self, channels: int | None = None, axis: int = 0) -> None:
        super().__init__()
        self.channels, self.axis = channels, axis
        histogram, exponent = ops.empty_histogram(channels)
        self.register_buffer("histogram", histogram)
        self.register_buffer("exponent", exponent)

    def forward(self, x: Tensor) -> Tensor:
        axis = None if self.channels is None else self.axis
        ops.add_to_histogram_(self.histogram, self.exponent, x.detach(), axis)
        return x

    def merge(self, other: _HistogramObserver) -> None:
        """Adds what another observer of this kind, on another part of the data, has counted."""
        ops.merge_histogram_(self.histogram, self.exponent, other.histogram, other.exponent)

    def range(self, qmin: int, qmax: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
        """The chosen range for codes in [qmin, qmax]: (min, max), float32 in the shape of `exponent`."""
        method = (self.observer, self.percentile)
        return ops.histogram_range(self.histogram, self.exponent, *method, qmin, qmax, symmetric)

    def calculate_qparams(self, qmin: int, qmax: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) of the chosen range, in the shape of `exponent`."""
        return ops.calculate_qparams(*self.range(qmin, qmax, symmetric), qmin, qmax, symmetric)

    def extra_repr(self) -> str:
        return "" if self.channels is None else f"channels={self.channels}, axis={self.axis}"


class PercentileObserver(_HistogramObserver):
    """Keeps `percentile` % of the values: the rest is cut off, half at either end; in a symmetric range the largest.

    Args:
        percentile: in (0, 100].
        channels, axis: as in the other observers.
    """

    observer = "percentile"

    def __init__(self, percentile: float = 99.99, channels: int | None = None, axis: int = 0) -> None:
        super().__init__(channels, axis)
        self.percentile = percentile


class MseObserver(_HistogramObserver):
    """The range whose grid has the least squared error."""

    observer = "mse"


class EntropyObserver(_HistogramObserver):
    """The range at which the codes say most about the values, by the divergence of Kullback and Leibler."""

    observer = "entropy"
