"""`FakeQuantize`: the owner of one grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import ops
from ..spec import HISTOGRAM_OBSERVERS, Spec

# Python mirrors of buffers: forward decides by them, so that it neither waits for a device nor breaks a compiled graph.
_MIRRORED = {"observing": "_observing", "enabled": "_enabled", "stale": "_stale"}

# Values of the buffer `stale`.
FRESH, SWITCHED_OFF, STALE = range(3)


class FakeQuantize(nn.Module):
    """Observes the range of a tensor and rounds it to the grid that follows from the range.

    forward(x): any floating dtype and shape in, the same out (float32 in evaluation); where it observes, the range of x
    counts from the next forward on. The gradient is straight-through: 1 where the code is not clamped, else 0. Until a
    range is known x passes unchanged. NaN passes; a forward that saw NaN or inf leaves the range alone and is counted
    in `nonfinite`.

    Buffers, all 0-d: `min`, `max` (the range, +inf and -inf while empty), `scale`, `zero_point`, `steps` (the scale in
    units of its add component), `observing`, `enabled` (fake quantization), `stale` (1: fake quantization is off
    after it had been on; 2: and the range was observed in training since then, so it is not that of the quantized
    model; else 0), `nonfinite`. With an observer that needs one also `histogram`, int64 [8192], and `exponent`, of its
    bins' width. A state_dict may lack all of them, as an FP32 checkpoint does.

    Args:
        spec: bits, symmetric, observer, averaging_constant and percentile are used.
        name: what errors call this grid.
    """

    def __init__(self, spec: Spec | None = None, name: str = "") -> None:
        super().__init__()
        spec = spec or Spec()
        self.bits, self.symmetric = spec.bits, spec.symmetric
        self.observer, self.averaging_constant, self.percentile = (
            spec.observer,
            spec.averaging_constant,
            spec.percentile,
        )
        self.counts = spec.observer in HISTOGRAM_OBSERVERS
        self.qmin, self.qmax = int(spec.symmetric), 2**spec.bits - 1
        self.name = name
        for key, value in {"min": math.inf, "max": -math.inf, "scale": 1.0}.items():
            self.register_buffer(key, torch.tensor(value))
        middle = 2 ** (spec.bits - 1) if spec.symmetric else 0
        self.register_buffer("zero_point", torch.tensor(middle, dtype=torch.int32))
        self.register_buffer("steps", torch.tensor(1, dtype=torch.int32))
        for key, value in {"observing": True, "enabled": True}.items():
            self.register_buffer(key, torch.tensor(value))
        self.register_buffer("stale", torch.tensor(FRESH, dtype=torch.uint8))
        self.register_buffer("nonfinite", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("pending_min", torch.tensor(math.inf), persistent=False)
        self.register_buffer("pending_max", torch.tensor(-math.inf), persistent=False)
        if self.counts:
            for prefix in ("", "pending_"):
                histogram, exponent = ops.empty_histogram()
                self.register_buffer(f"{prefix}histogram", histogram, persistent=not prefix)
                self.register_buffer(f"{prefix}exponent", exponent, persistent=not prefix)
        self.shared = False  # committed by a `GridSet` with others, not by itself
        self.calibrating = False
        self.refresh()

    @property
    def observes(self) -> bool:
        """Whether this forward observes."""
        in_training = self.training and self._observing and not (self.counts and self.active)
        return self.calibrating or in_training

    @property
    def active(self) -> bool:
        """Whether this forward is on the grid."""
        return self._enabled and self.ready and not self.calibrating

    def grid(self) -> tuple[Tensor, Tensor, int, int]:
        """Scale, zero point, qmin, qmax, as the ops take them."""
        return self.scale, self.zero_point, self.qmin, self.qmax

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"FakeQuantize {self.name}: the input must be floating point (got {x.dtype})")
        if not self.training and self.active:
            x = x.float()  # a 16-bit value can be off its grid by half a step; evaluation may not
        if not self.observes:
            return ops.fake_quantize_per_tensor(x, *self.grid()) if self.active else x
        if self.active:
            y, low, high = ops.observe_and_fake_quantize(x, *self.grid())
        else:
            y, (low, high) = x, ops.min_max(x.detach())
        self.observe(low, high, x)
        return y

    def observe(self, low: Tensor, high: Tensor, x: Tensor) -> None:
        """Adds one tensor, in float, and its range to what this forward saw."""
        ops.merge_pending_(self.pending_min, self.pending_max, low, high)
        if self.counts:
            ops.add_to_histogram_(self.pending_histogram, self.pending_exponent, x.detach())
        if not self.shared:
            commit([self])

    def forget(self) -> None:
        """Drops what a forward saw that did not come to its end."""
        self.pending_min.fill_(math.inf)
        self.pending_max.fill_(-math.inf)
        if self.counts:
            _empty(self.pending_histogram, self.pending_exponent)

    def clear(self) -> None:
        """Empties the range and the histogram."""
        self.min.fill_(math.inf)
        self.max.fill_(-math.inf)
        self.stale.fill_(FRESH)
        if self.counts:
            _empty(self.histogram, self.exponent)
        self.refresh()

    def set_observing(self, on: bool) -> None:
        self.observing.fill_(on)
        self._observing = on

    def set_enabled(self, on: bool) -> None:
        """Switches fake quantization."""
        if not on and self._enabled and self.ready and self._stale == FRESH:
            self.set_stale(SWITCHED_OFF)
        elif on and self._stale == SWITCHED_OFF:
            self.set_stale(FRESH)
        self.enabled.fill_(on)
        self._enabled = on

    def set_stale(self, state: int) -> None:
        self.stale.fill_(state)
        self._stale = state

    def note_commit(self) -> None:
        """Called after what this forward saw went into the range."""
        if not self.ready:
            self.refresh()
        if self._enabled and self._stale == STALE:
            self.set_stale(FRESH)
        elif self.training and self._stale == SWITCHED_OFF:
            self.set_stale(STALE)

    def refresh(self) -> None:
        """Reads the Python mirrors from the buffers; needed after writing to the buffers by hand."""
        for buffer, mirror in _MIRRORED.items():
            setattr(self, mirror, getattr(self, buffer).item())
        self.ready = bool(self.min <= self.max)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuantize:
        return super()._apply(keeping_dtype(fn), recurse)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        persistent = self._buffers.keys() - self._non_persistent_buffers_set
        if not any(prefix + key in state_dict for key in persistent):
            return  # an FP32 checkpoint
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.refresh()

    def extra_repr(self) -> str:
        return f"bits={self.bits}, symmetric={self.symmetric}, observer={self.observer!r}"


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without a cast: scales are float32 whatever a model computes in; the device follows."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def commit(
    grids: list[FakeQuantize],
    components: list[int] | None = None,
    products: list[int] | None = None,
) -> None:
    """Moves what the forward saw, on all processes, into the ranges and solves the grids: rule 9 of docs/numerics.md.

    With more than one process of torch.distributed all of them must come here in the same forward.

    components: per grid the number of the add component it belongs to, -1 for none. products: triples (a, b, out) of
    indices into `grids`.
    """
    counting = [grid for grid in grids if grid.counts]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        _share_pending(grids)
        if counting:
            _share_histograms(counting)
    if counting:
        ops.commit_histograms_(
            *[[getattr(grid, key) for grid in counting] for key in _COUNTED],
            [grid.observer for grid in counting],
            [grid.percentile for grid in counting],
            [grid.qmin for grid in counting],
            [grid.qmax for grid in counting],
            [grid.symmetric for grid in counting],
        )
    buffers = [[getattr(grid, key) for grid in grids] for key in _COMMITTED]
    ops.commit_ranges_(
        *buffers,
        [grid.qmin for grid in grids],
        [grid.qmax for grid in grids],
        [grid.symmetric for grid in grids],
        components or [-1] * len(grids),
        products or [],
        ["latest" if grid.counts else grid.observer for grid in grids],
        [grid.averaging_constant for grid in grids],
    )
    for grid in grids:
        grid.note_commit()


def _empty(histogram: Tensor, exponent: Tensor) -> None:
    for buffer, empty in zip((histogram, exponent), ops.empty_histogram(), strict=True):
        buffer.copy_(empty)


def _share_pending(grids: list[FakeQuantize]) -> None:
    """One all-reduce for the ranges of all grids on all processes.

    Whether MIN keeps NaN is up to the backend, so NaN travels as -inf: the commit skips and counts both alike.
    """
    pending = [g.pending_min for g in grids] + [-g.pending_max for g in grids]
    joined = torch.stack(pending).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    dist.all_reduce(joined, op=dist.ReduceOp.MIN)
    low, high = joined.chunk(2)
    for i, grid in enumerate(grids):
        grid.pending_min.copy_(low[i])
        grid.pending_max.copy_(-high[i])


def _share_histograms(grids: list[FakeQuantize]) -> None:
    """One all-reduce for the widths of the bins, one for the counts."""
    exponents = torch.stack([grid.pending_exponent for grid in grids])
    dist.all_reduce(exponents, op=dist.ReduceOp.MAX)
    counts = torch.zeros(len(grids), grids[0].histogram.numel(), dtype=torch.int64, device=exponents.device)
    own = [torch.stack([getattr(g, key) for g in grids]) for key in ("pending_histogram", "pending_exponent")]
    ops.merge_histogram_(counts, exponents, *own)
    dist.all_reduce(counts)
    for i, grid in enumerate(grids):
        grid.pending_histogram.copy_(counts[i])
        grid.pending_exponent.copy_(exponents[i])


_COUNTED = ("histogram", "exponent", "pending_histogram", "pending_exponent", "pending_min", "pending_max")
_COMMITTED = ("pending_min", "pending_max", "min", "max", "scale", "zero_point", "steps", "nonfinite")
