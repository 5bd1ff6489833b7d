"""When a QAT model observes, fake-quantizes, and stops adapting its statistics."""

from __future__ import annotations

from typing import Any

from torch import nn

from .nn import FakeQuantize, NormBlock
from .prepare import ROOT, QATModel, freeze_float_norms
from .spec import is_number


def set_mode(
    model: nn.Module,
    observe: bool | None = None,
    fake_quantize: bool | None = None,
    freeze_bn: bool | None = None,
    freeze_ranges: bool | None = None,
    sync_bn: bool | None = None,
) -> None:
    """Switches what the training forwards of `model` do; None leaves a switch as it is.

    Args:
        model: a prepared model, or any module with `octet.nn` modules in it.
        observe: ranges follow the data.
        fake_quantize: layers that have ranges compute on their grids. Off, the model is its float original.
        freeze_bn: batch norm uses and keeps its running statistics in training too. With the ranges frozen as well,
            training forwards then give the bits of evaluation. Batch norms that no block runs go into evaluation mode,
            or back into that of the model; in a module composed by hand `model.train()` undoes it.
        freeze_ranges: the opposite of observe, under the name of what it is for; it wins.
        sync_bn: batch norm takes the batches of all processes of torch.distributed for one, as
            `torch.nn.SyncBatchNorm` does; unlike that class also on CPUs under DistributedDataParallel.
    """
    check_has_grids("set_mode", model)
    observing = observe if not freeze_ranges else False
    if freeze_ranges is False and observe is None:
        observing = True
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            if observing is not None:
                module.set_observing(observing)
            if fake_quantize is not None:
                module.set_enabled(fake_quantize)
        elif isinstance(module, NormBlock):
            module.freeze_bn = module.freeze_bn if freeze_bn is None else freeze_bn
            module.sync_bn = module.sync_bn if sync_bn is None else sync_bn
    if freeze_bn is not None:
        if isinstance(model, QATModel):
            model.get_submodule(ROOT)._freeze_bn = freeze_bn
        freeze_float_norms(model, freeze_bn)


def check_has_grids(what: str, model: nn.Module) -> None:
    """Raises TypeError for a model in which there is nothing to observe or to quantize."""
    if not isinstance(model, QATModel) and not any(isinstance(module, FakeQuantize) for module in model.modules()):
        raise TypeError(
            f"{what}: the model must come from octet.prepare or have octet.nn modules (got {type(model).__name__})"
        )


class Schedule:
    """Calls `set_mode` as training proceeds: step it after each optimizer step, like a learning rate scheduler.

    The four fractions of `steps` say when observing and fake quantization begin, and when batch norm statistics and
    ranges stop. 0 is from the start, 1 or more is never before the end.

    Raises:
        TypeError: a float model.
        ValueError: steps below 1, a fraction that is no number or negative, or ranges that freeze before they are
            observed.
    """

    def __init__(
        self,
        qat: nn.Module,
        steps: int,
        observe: float = 0.0,
        fake_quantize: float = 0.0,
        freeze_bn: float = 0.6,
        freeze_ranges: float = 0.8,
    ) -> None:
        starts = {"observe": observe, "fake_quantize": fake_quantize, "freeze_bn": freeze_bn}
        starts["freeze_ranges"] = freeze_ranges
        check_has_grids("Schedule", qat)
        _check_plan(steps, starts)
        self.qat, self.steps, self.starts, self.done = qat, steps, starts, 0
        self._modes: dict[str, bool] = {}
        self._apply()

    def step(self) -> None:
        """Counts one optimizer step."""
        self.done += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "done": self.done, **self.starts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where the Schedule that gave `state` was, and sets the model's modes accordingly."""
        missing = {"steps", "done", *self.starts} - state.keys()
        if missing:
            raise ValueError(f"Schedule: the state must have {sorted(missing)} (got {sorted(state)})")
        starts = {name: state[name] for name in self.starts}
        _check_plan(state["steps"], starts)
        self.steps, self.done, self.starts = state["steps"], state["done"], starts
        self._modes = {}
        self._apply()

    def _apply(self) -> None:
        modes = {name: self.done >= start * self.steps for name, start in self.starts.items()}
        changed = {name: mode for name, mode in modes.items() if self._modes.get(name) != mode}
        if {"observe", "freeze_ranges"} & changed.keys():  # one switch underneath
            changed |= {name: modes[name] for name in ("observe", "freeze_ranges")}
        if changed:
            set_mode(self.qat, **changed)
        self._modes = modes


def _check_plan(steps: int, starts: dict[str, float]) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"Schedule: steps must be an integer, at least 1 (got {steps!r})")
    for name, start in starts.items():
        if not is_number(start) or not start >= 0:  # NaN is not
            raise ValueError(f"Schedule: {name} must be a number, not negative (got {start!r})")
    observe, freeze = starts["observe"], starts["freeze_ranges"]
    if freeze < observe:
        raise ValueError(f"Schedule: freeze_ranges must not be before observe (got {freeze}, {observe})")
