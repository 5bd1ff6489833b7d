"""Static post-training quantization: ranges from data, no training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .errors import RangeError
from .nn import FakeQuantize
from .schedule import check_has_grids, set_mode


def calibrate(qat: nn.Module, batches: Iterable[Any], progress: bool = True) -> None:
    """Runs `batches` through `qat` in evaluation mode in float, and observes all of them with equal weight.

    Grids with an observer of histograms choose their range by it; all others take the widest.

    Earlier ranges are dropped. Afterwards observing is off, fake quantization on, and the training flag as it was.

    Args:
        qat: a prepared model, or any module with `octet.nn` modules.
        batches: inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments each. With a
            data loader that also gives labels, pass `(x for x, _ in loader)`.
        progress: show a progress bar (in a terminal).

    Raises:
        TypeError: a model without grids, or batches that do not fit its forward.
        RangeError: no batches, or NaN or inf in an activation; names the first grid that saw it. The ranges are then
            those of the other batches.
    """
    check_has_grids("calibrate", qat)
    if isinstance(batches, (Tensor, Mapping, str)):
        raise TypeError(
            f"calibrate: batches must be an iterable of batches (got {type(batches).__name__}); for one: [batch]"
        )
    grids = [module for module in qat.modules() if isinstance(module, FakeQuantize)]
    before = [int(grid.nonfinite) for grid in grids]
    flags = {module: module.training for module in qat.modules()}
    for grid in grids:
        _begin(grid)
    count = 0
    try:
        qat.eval()
        with torch.no_grad():
            for batch in tqdm(batches, desc="calibrate", disable=None if progress else True, unit="batch"):
                _call(qat, batch)
                count += 1
    finally:
        for module, flag in flags.items():
            module.training = flag
        for grid in grids:
            grid.observer, grid.calibrating = grid.__dict__.pop("_observer"), False
            grid.refresh()
        set_mode(qat, observe=False, fake_quantize=True)
    if count == 0:
        raise RangeError("calibrate: there must be at least one batch (got 0)")
    for grid, seen in zip(grids, before, strict=True):
        if int(grid.nonfinite) > seen:
            times = int(grid.nonfinite) - seen
            raise RangeError(
                f"calibrate: {grid.name}: values must be finite (got NaN or inf in {times} of {count} batches)"
            )


def _begin(grid: FakeQuantize) -> None:
    """Empties the range. All batches count alike: a moving average becomes the range of all."""
    grid._observer = grid.observer
    grid.observer, grid.calibrating = grid.observer if grid.counts else "min_max", True
    grid.clear()


def _call(model: nn.Module, batch: Any) -> None:
    if not isinstance(batch, (Tensor, Mapping, tuple, list)):
        raise TypeError(f"calibrate: a batch must be a tensor, tuple, list or dict (got {type(batch).__name__})")
    args = () if isinstance(batch, Mapping) else (batch,) if isinstance(batch, Tensor) else tuple(batch)
    kwargs = batch if isinstance(batch, Mapping) else {}
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"calibrate: a batch must hold what the model takes (got {len(args) + len(kwargs)} values: {error}); "
            "from a loader that also gives labels, pass (x for x, _ in loader)"
        ) from error
    model(*args, **kwargs)
