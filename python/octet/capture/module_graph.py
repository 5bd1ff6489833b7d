"""`ModuleGraph`: a GraphModule that keeps everything its root module owns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn

_STATE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training")
_PICKLED_META = ("octet_name", "stack_trace")


class ModuleGraph(fx.GraphModule):
    """A graph of calls over the submodules of `root`, all of which stay registered under their own names.

    Attributes:
        unreached: names of the outermost modules that own parameters none of which the graph reads.

    Each node carries `meta["octet_name"]`, a stable readable name (`layer1.0.conv1`, `layer1.0.add`), and, until the
    graph is pickled, `meta["val"]`, a fake tensor of its shape and dtype. Copies keep both.
    """

    unreached: list[str]

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str | None = None) -> None:
        super().__init__(root, graph, class_name or _class_of(self).__name__)
        # GraphModule keeps only what the graph calls, in the order of the calls. Optimizers and checkpoints count on
        # all of it in the order of the original.
        self.__dict__.update({name: root.__dict__[name] for name in _STATE})
        self.unreached = list(getattr(root, "unreached", ()))

    def lean(self) -> fx.GraphModule:
        """The same graph over the same modules without those it does not call, containers reduced to bare modules.

        This is what `torch.jit.script` takes: it would compile the forward of every registered module otherwise.
        """
        return fx.GraphModule(self, self.graph, "LeanGraph")

    def __reduce__(self) -> tuple:
        root = nn.Module()
        root.__dict__.update({name: self.__dict__[name] for name in _STATE})
        cls = next(c for c in type(self).__mro__ if "GraphModuleImpl" not in c.__qualname__)
        return _load, (cls, root, self.unreached, [_dump_node(node) for node in self.graph.nodes])

    @classmethod
    def _deepcopy_init(cls) -> Callable[..., None]:
        return cls.__init__


def is_none(value: torch.Tensor | None) -> bool:
    """Spelled as a function, because `is` has no node of its own."""
    return value is None


def _class_of(graph: ModuleGraph) -> type[ModuleGraph]:
    """The class as it was written: torch.fx gives every graph a nameless one of its own."""
    return next(c for c in type(graph).__mro__ if c.__name__ != "GraphModuleImpl")


class _Name(NamedTuple):
    """Stands for a node in pickled arguments."""

    node: str


def _dump_node(node: fx.Node) -> tuple:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(n.name))
    target = node.target if isinstance(node.target, str) else fx.node._get_qualified_name(node.target)
    meta = {key: node.meta[key] for key in _PICKLED_META if key in node.meta}
    return node.name, node.op, target, _plain(args), _plain(kwargs), node.type, meta


def _plain(value: Any) -> Any:
    """fx keeps arguments in immutable lists and dicts of its own; pickle the built-in ones."""
    if isinstance(value, _Name):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    return value


def _load(cls: type[ModuleGraph], root: nn.Module, unreached: list[str], nodes: list[tuple]) -> ModuleGraph:
    graph, made = fx.Graph(), {}

    def restore(value: Any) -> Any:
        if isinstance(value, _Name):
            return made[value.node]
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(restore(item) for item in value)
        return value

    for name, op, target, args, kwargs, kind, meta in nodes:
        target = _resolve(target) if op == "call_function" else target
        node = graph.create_node(op, target, restore(args), restore(kwargs), name=name, type_expr=kind)
        node.meta.update(meta)
        made[name] = node
    root.unreached = unreached
    return cls(root, graph)


def _resolve(qualified: str) -> Callable:
    if qualified.startswith("torch.ops."):
        target = torch.ops
        for part in qualified.removeprefix("torch.ops.").split("."):
            target = getattr(target, part)
        return target
    module, _, name = qualified.rpartition(".")
    return getattr(importlib.import_module(module), name)
