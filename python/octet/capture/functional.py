"""Rewrites an exported ATen graph so that no node writes in place.

`ExportedProgram.run_decompositions` does this too, but it also replaces dropout, batch norm, flatten and reshape by
their parts, which could then no longer be traced back to modules.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ..errors import CaptureError

_aten = torch.ops.aten
_VIEW_AS = (_aten.view, _aten.reshape, _aten.flatten, _aten.unsqueeze, _aten.squeeze, _aten.unflatten, _aten.view_as)


def inline_grad_regions(module: GraphModule) -> None:
    """Replaces each `torch.no_grad()` region, which export keeps as a subgraph, by its nodes; its results detach."""
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        enabled, submodule, *inputs = node.args
        body = getattr(module, submodule.target)
        inline_grad_regions(body)
        values = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), inputs, strict=True))
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(body.graph, values)
            for user in list(node.users):
                result = results[user.args[1]]
                if not enabled and isinstance(result.meta["val"], torch.Tensor):
                    result = _insert(module.graph, _aten.detach.default, (result,), result)
                user.replace_all_uses_with(result)
                module.graph.erase_node(user)
        module.graph.erase_node(node)
        if not submodule.users:
            module.graph.erase_node(submodule)


def functionalize(program: ExportedProgram) -> None:
    """Replaces every in-place op by its functional form; later readers of the written tensor and of its views follow.

    Writes to the user's inputs are dropped. Raises CaptureError for a write that cannot be expressed so: to a parameter
    or buffer, or through a view whose base is read again and that has no inverse here.
    """
    inputs = set(program.graph_signature.user_inputs)
    for node in list(program.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        base = node.args[0]
        while (viewed := _viewed(base)) is not None:
            base = viewed
        if node.target is _aten.detach_.default:  # export's own, on tensors that forward creates
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
        elif base.op == "placeholder" and base.name not in inputs:
            raise CaptureError(f"capture: the evaluation forward must not write to its state (got {base}){where(node)}")
        else:
            _make_functional(program.graph, node)


def _make_functional(graph: Graph, node: Node) -> None:
    written = node.args[0]
    if node.target is _aten.copy_.default:  # aten.copy has no derivative
        form, args, kwargs = _aten.expand_as.default, (node.args[1], written), {}
    else:
        form, args, kwargs = _functional_form(node), node.args, node.kwargs
    val_args, val_kwargs = map_arg((args, kwargs), lambda n: n.meta["val"])
    dtype = written.meta["val"].dtype
    with graph.inserting_before(node):
        value = _insert(graph, form, args, node, kwargs)
        if form(*val_args, **val_kwargs).dtype != dtype:  # in place keeps the dtype, the functional form promotes it
            value = _insert(graph, _aten.to.dtype, (value, dtype), node)
        current = _write_through(graph, written, value) if _shared_later(graph, node) else {written: value}
    node.replace_all_uses_with(current[written])
    for old, new in current.items():
        old.replace_all_uses_with(new, delete_user_cb=lambda user: node < user)
    graph.erase_node(node)
    for new in reversed(current.values()):
        if not new.users and new is not value:
            graph.erase_node(new)


def _shared_later(graph: Graph, write: Node) -> bool:
    """Whether anything but the written tensor itself shows the write to a later node."""
    memory = _memory(write.args[0])
    sharing = (n for n in graph.nodes if n < write and n is not write.args[0] and _memory(n) & memory)
    return any(write < user for n in sharing for user in n.users)


def _functional_form(node: Node) -> torch._ops.OpOverload:
    writes = [a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments]
    packet = getattr(_aten, node.target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    overload = getattr(packet, node.target._overloadname, None)
    if writes.index(True) != 0 or writes.count(True) != 1 or overload is None:
        raise CaptureError(f"capture: {node.target} writes in place and has no functional form{where(node)}")
    return overload


def _write_through(graph: Graph, written: Node, value: Node) -> dict[Node, Node]:
    """What each node that shares memory with `written` holds after `written` became `value`.

    The write goes up through the views to the tensor they are views of; then all views of it are taken anew.
    """
    last, root = value, written
    while (base := _viewed(root)) is not None:
        undo = _UNDO.get(getattr(root.target, "overloadpacket", None))
        if undo is None:
            raise CaptureError(f"capture: cannot follow a write in place through {root.target}{where(last)}")
        root, value = base, undo(graph, root, base, value)
    current = {root: value}
    for view in list(graph.nodes):
        if view is last:
            break
        if (base := _viewed(view)) in current:
            current[view] = _insert(graph, view.target, (current[base], *view.args[1:]), view, view.kwargs)
    return current


def _viewed(node: Node) -> Node | None:
    """The tensor that `node` is a view of; reshape, contiguous and the like view only if they share its memory."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return node.args[0]
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    if not any(r.alias_info is not None and not r.alias_info.is_write for r in node.target._schema.returns):
        return None
    return node.args[0] if _memory(node) & _memory(node.args[0]) else None


def _memory(node: Node) -> set[int]:
    val = node.meta.get("val")
    tensors = val if isinstance(val, (tuple, list)) else [val]
    return {t.untyped_storage()._cdata for t in tensors if isinstance(t, torch.Tensor)}


def _insert(graph: Graph, target: Callable, args: tuple, like: Node, kwargs: dict | None = None) -> Node:
    node = graph.call_function(target, args, kwargs)
    node.meta = dict(like.meta)
    return node


def _undo_reshape(graph: Graph, view: Node, base: Node, value: Node) -> Node:
    return _insert(graph, _aten.view_as.default, (value, base), base)


def _undo_transpose(graph: Graph, view: Node, base: Node, value: Node) -> Node:
    return _insert(graph, view.target, (value, *view.args[1:]), base)


def _undo_permute(graph: Graph, view: Node, base: Node, value: Node) -> Node:
    order = [d % len(view.args[1]) for d in view.args[1]]
    return _insert(graph, view.target, (value, [order.index(d) for d in range(len(order))]), base)


def _undo_slice(graph: Graph, view: Node, base: Node, value: Node) -> Node:
    return _insert(graph, _aten.slice_scatter.default, (base, value, *view.args[1:]), base)


def _undo_select(graph: Graph, view: Node, base: Node, value: Node) -> Node:
    return _insert(graph, _aten.select_scatter.default, (base, value, *view.args[1:]), base)


_UNDO = {
    **dict.fromkeys(_VIEW_AS, _undo_reshape),
    _aten.transpose: _undo_transpose,
    _aten.permute: _undo_permute,
    _aten.slice: _undo_slice,
    _aten.select: _undo_select,
    _aten.alias: lambda graph, view, base, value: value,
}


def where(node: Node) -> str:
    """The user's line that made `node`, as ` at file:line`, if export recorded one."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    if not frames:
        return ""
    file, line = frames[-1].split(",")[:2]
    return f" at {file.removeprefix('File ').strip(chr(34))}:{line.removeprefix(' line ')}"
