"""A graph model as plain data and tensors, and back: no pickle, and nothing in it runs while it is read.

Modules are written as their class, their plain attributes, their tensors and their children; only classes of torch.nn
and octet are read back. A container of the user's own class becomes a bare `nn.Module`: the graph does not call it.
"""

from __future__ import annotations

import importlib
import operator
import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from .capture import ModuleGraph
from .errors import FileError
from .nn.int8 import PoolGeometry

_INTERNAL = nn.Module().__dict__.keys() | {"_is_impure"}
_CLASSES = ("torch.nn.modules.", "octet.")
_TORCH_VALUES = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format))
}
_OPERATORS = {
    "getitem",
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
}
_NAME = re.compile(r"[^\s'\"\\{}().,;]+")


def encode(model: ModuleGraph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The model as JSON data and as tensors by name."""
    writer = _Writer(model)
    return writer.model(model), writer.tensors


def decode(data: dict[str, Any], tensors: dict[str, Tensor], kind: type[ModuleGraph]) -> ModuleGraph:
    """The model of class `kind` that `encode` wrote."""
    return _Reader(data, tensors).model(kind)


class _Writer:
    def __init__(self, model: ModuleGraph) -> None:
        named = list(model.named_modules())
        self.index = {id(module): i for i, (_, module) in enumerate(named)}
        self.called = {node.target for node in model.graph.nodes if node.op == "call_module"}
        self.named = named
        self.tensors: dict[str, Tensor] = {}
        self.keys: dict[int, str] = {}  # id of a tensor -> its first name, so that shared ones stay shared

    def model(self, model: ModuleGraph) -> dict[str, Any]:
        modules = [self.module(name, module) for name, module in self.named]
        graph = [self.node(node) for node in model.graph.nodes]
        return {"modules": modules, "graph": graph, "unreached": list(model.unreached)}

    def module(self, name: str, module: nn.Module) -> dict[str, Any]:
        path = f"{type(module).__module__}.{type(module).__qualname__}"
        known = path.startswith(_CLASSES) and not isinstance(module, fx.GraphModule)
        if not known and name in self.called:
            raise FileError(f"save: {name}: a layer must be of torch.nn or octet to be saved (got {path})")
        own = {key: value for key, value in module.__dict__.items() if key not in _INTERNAL} if known else {}
        return {
            "class": path if known else "torch.nn.modules.module.Module",
            "training": module.training,
            "attributes": {key: self.value(value, f"{name}.{key}") for key, value in own.items()},
            "parameters": {key: self.tensor(name, key, value) for key, value in module._parameters.items()},
            "buffers": {key: self.tensor(name, key, value) for key, value in module._buffers.items()},
            "transient": sorted(module._non_persistent_buffers_set),
            "children": {key: None if c is None else self.index[id(c)] for key, c in module._modules.items()},
        }

    def tensor(self, name: str, key: str, value: Tensor | None) -> dict[str, Any] | None:
        if value is None:
            return None
        stored = self.keys.setdefault(id(value), f"{name}.{key}")
        self.tensors[stored] = value.detach()
        return {"tensor": stored, "requires_grad": value.requires_grad}

    def node(self, node: fx.Node) -> dict[str, Any]:
        target = node.target if isinstance(node.target, str) else fx.node._get_qualified_name(node.target)
        if node.op == "call_function":
            _resolve(target)  # what cannot be read back must not be written
        where = f"graph node {node.name}"
        return {
            "name": node.name,
            "op": node.op,
            "target": target,
            "args": self.value(node.args, where),
            "kwargs": self.value(dict(node.kwargs), where),
            "octet_name": node.meta.get("octet_name"),
        }

    def value(self, value: Any, where: str) -> Any:
        """Numbers, strings and lists as they are, anything else as a dict with one key that says what it is."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, PoolGeometry):
            return {"pool": [self.value(item, where) for item in value]}
        if isinstance(value, (list, tuple)):
            items = [self.value(item, where) for item in value]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.value(item, where) for key, item in value.items()}}
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, nn.Module) and id(value) in self.index:
            return {"module": self.index[id(value)]}
        if isinstance(value, slice):
            return {"slice": [self.value(item, where) for item in (value.start, value.stop, value.step)]}
        if str(value) in _TORCH_VALUES:
            return {"torch": str(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        raise FileError(f"save: {where}: must be plain data to be saved (got {type(value).__name__})")


class _Reader:
    def __init__(self, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.data, self.stored = data, tensors
        self.tensors: dict[str, Tensor] = {}
        self.nodes: dict[str, fx.Node] = {}
        self.modules = [_class(entry["class"]) for entry in data["modules"]]

    def model(self, kind: type[ModuleGraph]) -> ModuleGraph:
        for module, entry in zip(self.modules, self.data["modules"], strict=True):
            self.fill(module, entry)
        graph = fx.Graph()
        for entry in self.data["graph"]:
            self.node(graph, entry)
        root = self.modules[0]
        root.unreached = self.data["unreached"]
        return kind(root, graph)

    def fill(self, module: nn.Module, entry: dict[str, Any]) -> None:
        for key, value in entry["attributes"].items():
            module.__dict__[key] = self.value(value)
        module.training = entry["training"]
        for key, value in entry["parameters"].items():
            module.register_parameter(key, self.tensor(value, parameter=True))
        for key, value in entry["buffers"].items():
            module.register_buffer(key, self.tensor(value, parameter=False), key not in entry["transient"])
        for key, index in entry["children"].items():
            _check_name(key)
            module._modules[key] = None if index is None else self.modules[index]

    def tensor(self, entry: dict[str, Any] | None, parameter: bool) -> Any:
        if entry is None:
            return None
        key = entry["tensor"]
        if key not in self.tensors:
            tensor = self.stored[key]
            self.tensors[key] = nn.Parameter(tensor, entry["requires_grad"]) if parameter else tensor
        return self.tensors[key]

    def node(self, graph: fx.Graph, entry: dict[str, Any]) -> None:
        op, target = entry["op"], entry["target"]
        if op == "call_function":
            target = _resolve(target)
        elif op == "call_method":
            if target != "size":
                raise FileError(f"load: a graph may call no method but size (got {target})")
        else:
            for part in target.split("."):
                _check_name(part)
        node = graph.create_node(op, target, self.value(entry["args"]), self.value(entry["kwargs"]), entry["name"])
        if entry["octet_name"] is not None:
            node.meta["octet_name"] = entry["octet_name"]
        self.nodes[entry["name"]] = node

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        return _READERS[kind](self, content)


_READERS = {
    "pool": lambda reader, v: PoolGeometry(*reader.value(v)),
    "tuple": lambda reader, v: tuple(reader.value(v)),
    "dict": lambda reader, v: {key: reader.value(item) for key, item in v.items()},
    "node": lambda reader, v: reader.nodes[v],
    "module": lambda reader, v: reader.modules[v],
    "slice": lambda reader, v: slice(*reader.value(v)),
    "torch": lambda reader, v: _TORCH_VALUES[v],
    "device": lambda reader, v: torch.device(v),
}


def _class(path: str) -> nn.Module:
    """A new, empty module of the class `path`."""
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None) if path.startswith(_CLASSES) else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or issubclass(kind, fx.GraphModule):
        raise FileError(f"load: layers must be of torch.nn or octet (got {path})")
    empty = kind.__new__(kind)
    nn.Module.__init__(empty)
    return empty


def _resolve(target: str) -> Any:
    """The function a graph calls: one of ATen's or octet's ops, or arithmetic on sizes."""
    head, _, name = target.rpartition(".")
    if head in ("torch.ops.aten", "torch.ops.octet"):
        return getattr(getattr(torch.ops, head.rpartition(".")[2]), name)
    if head in ("_operator", "operator") and name in _OPERATORS:
        return getattr(operator, name)
    if head == "torch" and (name.startswith("sym_") or name == "_assert"):
        return getattr(torch, name)
    raise FileError(f"a graph may call ATen, octet and size arithmetic only (got {target})")


def _check_name(name: str) -> None:
    """Names become part of the code of the graph's forward."""
    if not _NAME.fullmatch(name):
        raise FileError(f"load: names must not have quotes, spaces or brackets (got {name!r})")
