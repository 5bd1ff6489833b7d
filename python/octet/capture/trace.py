"""Runs `torch.export` on a copy of the model, and says in the user's terms why it failed."""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram

from ..errors import CaptureError

# Modules that are the identity in evaluation mode and drop whole paths or blocks in training. They leave no trace in
# an evaluation graph, so while tracing they stand in as a dropout of nothing, and the lifting finds them again.
_STOCHASTIC = frozenset({"StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d"})


def is_stochastic(module: nn.Module) -> bool:
    """Whether `module` does something in training only, and nothing at all in evaluation mode."""
    return type(module).__name__ in _STOCHASTIC


def copy_for_tracing(model: nn.Module) -> tuple[nn.Module, dict[str, bool]]:
    """Returns a deep copy of `model` in evaluation mode, and the training flags it had."""
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(f"capture: {type(model).__name__} must allow copy.deepcopy, which fails: {error}") from error
    flags = {name: module.training for name, module in copied.named_modules(remove_duplicate=False)}
    return copied.eval(), flags


def work_out_of_place(model: nn.Module) -> None:
    """Once traced, readers of what an in-place module overwrote read its result: it must not overwrite any more."""
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False


def trace(model: nn.Module, args: tuple, kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    """Exports `model` at the level of ATen's composite ops."""
    stand_ins = [module for module in model.modules() if is_stochastic(module)]
    try:
        for module in stand_ins:
            module.forward = lambda input: F.dropout(input, 0.0, False)
        # With gradients enabled: without them PyTorch's attention modules take an inference-only path.
        with torch.enable_grad():
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        raise CaptureError(_explain(model, args, kwargs, error)) from error
    finally:
        for module in stand_ins:
            del module.forward


def check_inputs(args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises CaptureError unless every input is a tensor or a constant."""
    if not isinstance(args, tuple):
        raise CaptureError(f"capture: args must be a tuple of example inputs (got {type(args).__name__})")
    for name, value in [*enumerate(args), *kwargs.items()]:
        if not (value is None or isinstance(value, (torch.Tensor, bool, int, float, str))):
            raise CaptureError(
                f"capture: input {name!r} must be a tensor or a constant (got {type(value).__name__}); "
                "wrap the model in a module that takes the tensors one by one"
            )


def free_batch(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], Any]:
    """Marks dimension 0 as free; doubles a batch of one, because export takes every size 1 for a constant."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim() > 0]
    batch = tensors[0].size(0) if tensors else 0

    def free(value: Any) -> tuple[Any, Any]:
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.size(0) != batch:
            return value, None
        return (torch.cat([value, value]) if batch == 1 else value), {0: Dim.DYNAMIC}

    positional = [free(value) for value in args]
    named = {name: free(value) for name, value in kwargs.items()}
    sizes = [shape for _, shape in positional]
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # export wants what forward(*xs) takes as one nested argument
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        sizes[first:] = [tuple(sizes[first:])]
    shapes = (*sizes, *(shape for _, shape in named.values()))
    return tuple(v for v, _ in positional), {name: v for name, (v, _) in named.items()}, shapes


def _explain(model: nn.Module, args: tuple, kwargs: dict[str, Any], error: Exception) -> str:
    own = _failure(model, args, kwargs)
    if own is not None:
        where, reason = _user_line(own), _first_line(own)
        return f"capture: {type(model).__name__} must run on the example inputs; it fails{where}: {reason}"
    reason = _first_line(error)
    if "data-dependent" in str(error):
        remedy = "the path must not depend on tensor values: use torch.where, or keep that part outside of the model"
    elif "Constraints violated" in reason or "specialized" in str(error):
        details = [line.strip(" -") for line in str(error).splitlines()[1:] if line.strip().startswith("-")]
        reason = " ".join([reason.split("!")[0] + ".", *details])
        remedy = "compute shapes from x.size(0) instead of a constant, or pass dynamic_shapes to fix the batch size"
    else:
        remedy = "make torch.export.export(model.eval(), args) work first, or keep that part outside of the model"
    reason = reason.rstrip(".")
    return f"capture: {type(model).__name__} cannot be exported{_user_line(error)}: {reason}. What to do: {remedy}."


def _failure(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Exception | None:
    """What the model itself raises on these inputs: then export is not to blame."""
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _user_line(error: Exception) -> str:
    """The innermost frame that is not PyTorch's and not ours, as ` at file:line (source)`."""
    ours, torchs = os.path.dirname(os.path.dirname(__file__)), os.path.dirname(torch.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((ours, torchs, "<")):
            return f" at {frame.filename}:{frame.lineno} ({frame.line})"
    return ""
