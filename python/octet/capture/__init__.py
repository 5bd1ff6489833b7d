"""From an `nn.Module` to a graph of its own submodules.

`capture` traces the model once with `torch.export` and lifts the result back to module level. Everything that
`prepare` and `convert` do, they do on the `ModuleGraph` it returns.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import CaptureError
from .functional import functionalize, inline_grad_regions
from .lift import lift
from .module_graph import ModuleGraph
from .trace import check_inputs, copy_for_tracing, free_batch, trace, work_out_of_place
from .training import check_forwards

__all__ = ["ModuleGraph", "capture"]


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ModuleGraph:
    """Captures the evaluation graph of `model` as a graph of its real submodules and of scriptable calls.

    The result behaves as the model does: same `state_dict` keys and parameter order, same outputs in evaluation mode
    bit for bit and in training mode, same signature (the arguments of the example call). `model` itself is left alone:
    the graph owns a deep copy, with the training flags of the original.

    What is different on purpose: the graph never writes in place (in-place activations and `+=` become ordinary
    ones, and an input the model would overwrite stays as it was), and a functional `dropout` becomes a module.
    PyTorch's transformer modules have a fused inference path, taken in evaluation mode under `no_grad` only; the graph
    has the ordinary one, whose last bits differ from it.

    Args:
        model: any module that `torch.export` accepts and whose output has the same structure in both modes.
        args: example positional arguments: tensors, or constants, which are fixed in the graph. No nested containers.
        kwargs: example keyword arguments, likewise.
        dynamic_shapes: as in `torch.export.export`. By default dimension 0 of the first tensor is the batch, and free
            in every tensor that has the same size there; all other sizes are fixed.

    Returns:
        A `ModuleGraph`.

    Raises:
        CaptureError: the model cannot be exported (data-dependent control flow, a fixed batch size, ...), takes nested
            inputs, writes to its own buffers in evaluation mode, or returns another structure in training mode.

    Warns:
        UserWarning: the training forward computes other values than the graph in training mode does.
    """
    kwargs = kwargs or {}
    check_inputs(args, kwargs)
    if type(model).__module__.startswith("torch.nn.modules.") and not list(model.children()):
        kind = type(model).__name__
        raise CaptureError(
            f"capture: the model must have layers as children (got a bare {kind}): wrap it in Sequential"
        )
    if dynamic_shapes is None:
        args, kwargs, dynamic_shapes = free_batch(model, args, kwargs)
    copied, flags = copy_for_tracing(model)
    program = trace(copied, args, kwargs, dynamic_shapes)
    inline_grad_regions(program.graph_module)
    functionalize(program)
    work_out_of_place(copied)
    graph = lift(copied, program)
    for name, module in graph.named_modules(remove_duplicate=False):
        module.training = flags.get(name, model.training)
    check_forwards(model, graph, args, kwargs)
    return graph
