"""Whether a QAT model can be converted, and if not, which layer is in the way."""

from __future__ import annotations

import torch
from torch import nn

from .errors import ConvertError
from .nn import Block, FakeQuantize
from .nn.fake_quantize import STALE
from .prepare import ROOT


def check_ready(qat: nn.Module) -> None:
    """Raises ConvertError unless every grid has a range and every layer finite parameters."""
    for module in qat.modules():
        if isinstance(module, FakeQuantize):
            _check_grid(module)
    for name, module in qat.named_modules():
        if isinstance(module, Block):
            _check_parameters(name.removeprefix(f"{ROOT}."), module)


def _check_grid(grid: FakeQuantize) -> None:
    low, high, lost = float(grid.min), float(grid.max), int(grid.nonfinite)
    what = None
    if not torch.isfinite(torch.stack([grid.min, grid.max, grid.scale])).all() or low > high:
        seen = f", {lost} forwards with NaN or inf" if lost else ""
        what = f"must have a finite range (got [{low}, {high}]{seen}); train or calibrate first"
    elif not bool(grid.enabled):
        what = "must have fake quantization on (got off); octet.set_mode(qat, fake_quantize=True)"
    elif int(grid.stale) == STALE:
        what = (
            "must have been observed with fake quantization on (got ranges observed in training while it was off, "
            "after it had been on); train on with both, or calibrate"
        )
    if what:
        raise ConvertError(f"convert: {grid.name}: {what}")


def _check_parameters(name: str, block: Block) -> None:
    for child in ("conv", "linear", "bn"):
        module = getattr(block, child, None)
        tensors = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ConvertError(f"convert: {name}: {child}.{key} must be finite (got NaN or inf)")
            if key == "running_var" and (tensor + module.eps <= 0).any():
                lowest = float(tensor.min())
                raise ConvertError(f"convert: {name}: {child}.{key} must not be negative (got {lowest:.6g})")
