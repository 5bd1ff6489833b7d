"""Checks that the graph does what the model does, in evaluation mode and in training.

A graph has no `if self.training`. So the model and its graph both run once in each mode on the example, from the same
random state, on copies: a different output structure or other values in evaluation are an error, other values in
training are worth a warning.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from ..errors import CaptureError


def check_forwards(model: nn.Module, graph: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises CaptureError where the graph gives other values in evaluation mode, or training another structure.

    Warns where training gives other values.
    """
    name = type(model).__name__
    try:
        expected, spec = _run(_training_copy(model), args, kwargs)
    except Exception as error:
        raise CaptureError(f"capture: {name}'s forward fails in training mode on the example: {error}") from error
    evaluated, eval_spec = _run(copy.deepcopy(model).eval(), args, kwargs)
    if spec != eval_spec:
        raise CaptureError(
            f"capture: {name} must return the same structure in training and evaluation mode (got {_show(spec)} and "
            f"{_show(eval_spec)}); wrap it in a module that returns what you train on in both"
        )
    actual, _ = _run(copy.deepcopy(graph).eval(), args, kwargs)
    if not all(_close(a, e) for a, e in zip(actual, evaluated, strict=True)):
        raise CaptureError(f"capture: {name} must compute the same when called again (its graph gives other values)")
    actual, _ = _run(_training_copy(graph), args, kwargs)
    if not all(_close(a, e) for a, e in zip(actual, expected, strict=True)):
        warnings.warn(
            f"capture: in training mode {name} computes other values than its graph, which is the evaluation forward "
            "(dropout inside attention, a branch on self.training, ...); that part is missing from training",
            stacklevel=3,
        )


class _LocalBatchNorm(_BatchNorm):
    """In the place of SyncBatchNorm: no CPU runs that in training, and other processes may not be here."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _training_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).train()
    for child in copied.modules():
        if isinstance(child, nn.SyncBatchNorm):
            child.__class__ = _LocalBatchNorm
    return copied


def _run(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return pytree.tree_flatten(module(*copy.deepcopy(args), **copy.deepcopy(kwargs)))


def _close(actual: Any, expected: Any) -> bool:
    if not isinstance(expected, torch.Tensor):
        return actual == expected
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-3, atol=1e-5, equal_nan=True)


def _show(spec: pytree.TreeSpec) -> str:
    return "a tensor" if spec.is_leaf() else f"{getattr(spec.type, '__name__', spec.type)} of {spec.num_leaves}"
