"""Which nodes of a captured graph become integer operators, which keep the grid of their input, which stay float."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from . import nn as qnn
from .capture import ModuleGraph
from .nn.block import Activation
from .nn.int8 import geometry
from .spec import Float, Recipe

_aten = torch.ops.aten

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

MAX_POOL_FUNCTIONS = {_aten.max_pool1d: 1, _aten.max_pool2d: 2, _aten.max_pool3d: 3}
_AVERAGE_FUNCTIONS = {_aten.avg_pool1d: 1, _aten.avg_pool2d: 2, _aten.avg_pool3d: 3}
_ADAPTIVE_FUNCTIONS = {_aten.adaptive_avg_pool1d: 1, _aten.adaptive_avg_pool2d: 2, _aten.adaptive_avg_pool3d: 3}

# Ops that only move values or choose among them: rule 9a of docs/numerics.md. All of them take uint8.
_MOVES = {
    _aten.cat,
    _aten.chunk,
    _aten.clone,
    _aten.contiguous,
    _aten.expand,
    _aten.flatten,
    _aten.flip,
    _aten.movedim,
    _aten.narrow,
    _aten.permute,
    _aten.pixel_shuffle,
    _aten.repeat,
    _aten.reshape,
    _aten.roll,
    _aten.select,
    _aten.slice,
    _aten.split,
    _aten.split_with_sizes,
    _aten.squeeze,
    _aten.stack,
    _aten.swapaxes,
    _aten.t,
    _aten.tile,
    _aten.transpose,
    _aten.unbind,
    _aten.unflatten,
    _aten.unsqueeze,
    _aten.upsample_nearest1d,
    _aten.upsample_nearest2d,
    _aten.upsample_nearest3d,
    _aten.view,
    _aten.view_as,
}
# Dropout is among them: in evaluation it is the identity. In training its result is off the grid by 1 / (1 - p), and
# the next block takes it as it is: a grid of its own would have to hold a range no evaluation ever sees.
_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.ChannelShuffle, *DROPOUTS, *MAX_POOLS)
PADS = (_aten.pad, _aten.constant_pad_nd)


@dataclass
class Operator:
    """An integer operator with a grid of its own for the result.

    Attributes:
        name: of the first node, the operator's name in reports, errors and state_dict keys.
        nodes: the nodes it covers; the last one's value is the result.
        operands: the nodes whose values it reads.
        make: gives the block, from the operands' grids, `output`, `activations` and `weights`.
        key: operators with one key are calls of the same modules, and so of one block.
        taps: products per accumulator, 0 where there are none.
        adds: whether operands and result form an add component.
    """

    name: str
    nodes: list[Node]
    operands: list[Node]
    make: Callable[..., qnn.Block]
    key: Any
    taps: int = 0
    adds: bool = False


@dataclass
class Tied:
    """A node whose result is on the grid of its operands. `relu6`: values above 6 must meet the grid again."""

    operands: list[Node]
    relu6: bool = False


@dataclass
class Island:
    """A node that computes in float, and why."""

    reason: str


Role = Operator | Tied | Island


def fuse(graph: ModuleGraph, recipe: Recipe) -> dict[Node, Role]:
    """The role of each node that computes a tensor, by the node whose value it produces, in order."""
    return _Fuser(graph, recipe).run()


def is_tensor(node: Any) -> bool:
    """Whether the value of `node` is a floating tensor or a list of those."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)


class _Fuser:
    def __init__(self, graph: ModuleGraph, recipe: Recipe) -> None:
        self.recipe = recipe
        self.modules = dict(graph.named_modules())
        self.nodes = list(graph.graph.nodes)
        self.roles: dict[Node, Role] = {}
        self.taken: set[Node] = set()

    def run(self) -> dict[Node, Role]:
        chains = self._chains()
        for node in self.nodes:
            if node.op not in ("call_module", "call_function", "call_method") or node in self.taken:
                continue
            if not is_tensor(node):
                continue
            role = self._role(node, chains.get(node, _Chain(node)))
            self.roles[role.nodes[-1] if isinstance(role, Operator) else node] = role
            if isinstance(role, Operator):
                self.taken.update(role.nodes)
        return self.roles

    # Chains: what follows a layer and belongs to it.

    def _chains(self) -> dict[Node, _Chain]:
        """The longest chain from each node that may head one; calls of one module get chains of one form, or none."""
        chains = {node: self._chain(node) for node in self.nodes if self._may_head(node)}
        calls: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.op == "call_module":
                calls.setdefault(node.target, []).append(node)
        for node, chain in chains.items():
            members = [n for n in chain.nodes if n.op == "call_module" and not activation_of(n, self.modules)]
            alike = [chains.get(call) for call in (calls[node.target] if node.op == "call_module" else [node])]
            whole = all(c is not None and c.form == chain.form for c in alike)
            exclusive = all(len(calls[m.target]) == len(alike) for m in members)
            if not (whole and exclusive):
                chain.unfit = True
        return {node: _Chain(node) if chain.unfit else chain for node, chain in chains.items()}

    def _may_head(self, node: Node) -> bool:
        layer = type(self._module(node)) in (*_WEIGHTED, *_NORMS) or node.target in (_aten.add, _aten.sub)
        return is_tensor(node) and (layer or self._is_average(node))

    def _is_average(self, node: Node) -> bool:
        functions = (_aten.mean, *_AVERAGE_FUNCTIONS, *_ADAPTIVE_FUNCTIONS)
        return type(self._module(node)) in (*_AVERAGES, *_ADAPTIVES) or node.target in functions

    def _chain(self, head: Node) -> _Chain:
        chain = _Chain(head)
        bn = self._only_user(head)
        if type(self._module(head)) in _WEIGHTED and bn is not None and self._norms_channels(head, bn):
            chain.bn = bn
        last = self._only_user(chain.nodes[-1])
        ends = last is not None and not self._is_average(head) and not self._is_float(last)  # pools clamp nothing
        found = activation_of(last, self.modules) if ends else None
        if found is not None:
            chain.end, chain.activation = last, found
        return chain

    def _norms_channels(self, layer: Node, bn: Node) -> bool:
        """Whether `bn` normalizes the output channels of `layer` and may be part of its block."""
        norm, module = self._module(bn), self._module(layer)
        if type(norm) not in _NORMS or norm.running_mean is None or self._is_float(bn):
            return False
        return not isinstance(module, nn.Linear) or layer.meta["val"].dim() == 2

    # Roles.

    def _role(self, node: Node, chain: _Chain) -> Role:
        if self._is_float(node):
            return Island("octet.Float in the recipe")
        try:
            return (
                self._operator(node, chain) or self._tied(node) or Island(f"{self._label(node)} has no INT8 operator")
            )
        except ValueError as error:  # a form of the layer that has no integer operator, with the reason
            return Island(str(error))

    def _operator(self, node: Node, chain: _Chain) -> Operator | None:
        module = self._module(node)
        if type(module) in _WEIGHTED:
            return self._weighted(chain, module)
        if type(module) in _NORMS:
            return self._batch_norm(chain, module)
        if self._is_average(node):
            return self._average(chain, module)
        return self._add(chain) if node.target in (_aten.add, _aten.sub) else None

    def _weighted(self, chain: _Chain, layer: nn.Module) -> Operator:
        dims = layer.weight.dim()
        if isinstance(layer, nn.Linear):
            _must(layer.weight.is_floating_point(), "Linear: weight must be floating point")
        else:
            geometry(layer)
            got = chain.head.meta["val"].dim()
            _must(got == dims, f"{type(layer).__name__}: the input must have {dims} dimensions (got {got})")
        bn = self._module(chain.bn) if chain.bn else None
        kind = qnn.block_type(layer, bn is not None, chain.activation)

        def make(input: qnn.FakeQuantize, **specs: Any) -> qnn.Block:
            return kind.wrap(layer, bn, chain.activation, input=input, **specs)

        return self._make(chain, [chain.head.args[0]], make, taps=layer.weight[0].numel())

    def _batch_norm(self, chain: _Chain, bn: _BatchNorm) -> Operator:
        _must(bn.running_mean is not None, f"{type(bn).__name__}: needs running statistics (got None)")
        before = chain.head.args[0]
        layer = isinstance(self._module(before), (_ConvNd, nn.Linear))
        _must(not (layer and isinstance(self.roles.get(before), Island)), "belongs to a layer that is float")
        kind = qnn.BATCH_NORMS[type(bn)]

        def make(input: qnn.FakeQuantize, weights: Any, **specs: Any) -> qnn.Block:
            return kind.wrap(bn, chain.activation, input=input, **specs)

        return self._make(chain, [chain.head.args[0]], make)

    def _average(self, chain: _Chain, module: nn.Module | None) -> Operator | None:
        head = chain.head
        if head.target is _aten.mean and not _is_global_mean(head):
            return None
        kind, args = _average_pool(head, module)

        def make(input: qnn.FakeQuantize, weights: Any, **specs: Any) -> qnn.Block:
            return kind(*args, input=input, **specs)

        return self._make(chain, [head.args[0]], make)

    def _add(self, chain: _Chain) -> Operator | None:
        node = chain.head
        operands = list(node.args[:2])
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if not all(is_tensor(operand) for operand in operands) or alpha not in (1, -1):
            return None
        shapes = [tuple(operand.meta["val"].shape) for operand in operands]
        _must(shapes[0] == shapes[1], "add: operands must have one shape")
        subtract = (node.target is _aten.sub) == (alpha == 1)
        kind = qnn.AddReLU if chain.activation else qnn.Add

        def make(a: qnn.FakeQuantize, b: qnn.FakeQuantize, weights: Any, **specs: Any) -> qnn.Block:
            return kind(a, b, subtract=subtract, activation=chain.activation, **specs)

        return self._make(chain, operands, make, adds=True)

    def _make(self, chain: _Chain, operands: list[Node], make: Callable[..., qnn.Block], **more: Any) -> Operator:
        _must(all(is_tensor(operand) for operand in operands), "the input must be a floating tensor")
        key = chain.head.target if chain.head.op == "call_module" and self._has_state(chain.head) else chain.head
        name = key if isinstance(key, str) else chain.head.meta["octet_name"]
        return Operator(name, chain.nodes, operands, make, key, **more)

    def _has_state(self, node: Node) -> bool:
        return any(True for _ in self._module(node).parameters()) or isinstance(self._module(node), _BatchNorm)

    def _tied(self, node: Node) -> Tied | None:
        operands = tied_operands(node)
        if not operands or not all(is_tensor(operand) for operand in operands):
            return None
        activation = activation_of(node, self.modules)
        if activation is not None:
            island = isinstance(self.roles.get(operands[0]), Island) and len(operands[0].users) == 1
            return None if island else Tied(operands, activation is Activation.RELU6)
        if is_getitem(node):
            return Tied(operands) if isinstance(self.roles.get(operands[0]), Tied) else None
        return Tied(operands) if keeps_grid(node, self.modules) else None

    # Small questions.

    def _module(self, node: Node | None) -> nn.Module | None:
        return self.modules[node.target] if node is not None and node.op == "call_module" else None

    def _only_user(self, node: Node) -> Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _is_float(self, node: Node) -> bool:
        name = node.target if node.op == "call_module" else node.meta["octet_name"]
        return self.recipe.override_for(name, self._module(node)) is Float

    def _label(self, node: Node) -> str:
        return label(node, self.modules)


@dataclass
class _Chain:
    """A layer and what may be part of its operator: batch norm, activation."""

    head: Node
    bn: Node | None = None
    end: Node | None = None
    activation: Activation = Activation.NONE
    unfit: bool = False

    @property
    def nodes(self) -> list[Node]:
        return [node for node in (self.head, self.bn, self.end) if node is not None]

    @property
    def form(self) -> tuple[Any, ...]:
        return (self.head.target, self.bn.target if self.bn else None, self.activation)


def label(node: Node, modules: dict[str, nn.Module]) -> str:
    """What a node computes: the class of its module or the name of its function."""
    if node.op == "call_module":
        return type(modules[node.target]).__name__
    return getattr(node.target, "__name__", str(node.target))


def tied_operands(node: Node) -> list[Node]:
    """The tensors whose values `node` moves or chooses among, should it do so: they come first in all such ops."""
    first = node.args[0] if node.args else None
    return [n for n in (first if isinstance(first, (list, tuple)) else [first]) if isinstance(n, Node)]


def is_getitem(node: Node) -> bool:
    return node.target is operator.getitem


def keeps_grid(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the values that `node` gives are values that it reads, or zeros."""
    module = modules[node.target] if node.op == "call_module" else None
    moves = node.target in _MOVES or type(module) in _MOVING_MODULES or node.target in MAX_POOL_FUNCTIONS
    return moves or _is_zero_pad(node) or _is_nearest(module)


def activation_of(node: Node, modules: dict[str, nn.Module]) -> Activation | None:
    """The activation that `node` is, if a clamp of the codes can do it."""
    module = modules[node.target] if node.op == "call_module" else None
    if type(module) is nn.ReLU or node.target is _aten.relu:
        return Activation.RELU
    if type(module) is nn.ReLU6 or node.target is _aten.relu6:
        return Activation.RELU6
    if type(module) is nn.Hardtanh:
        bounds = (module.min_val, module.max_val)
    elif node.target in (_aten.hardtanh, _aten.clamp, _aten.clamp_min):
        bounds = (*node.args[1:3], node.kwargs.get("min"), node.kwargs.get("max"))
    else:
        return None
    bounds = tuple(b for b in bounds if b is not None)
    if node.target in (_aten.clamp, _aten.clamp_min) and bounds == (0,) and node.kwargs.get("max") is None:
        return Activation.RELU
    return Activation.RELU6 if bounds == (0, 6) else None


def _is_global_mean(node: Node) -> bool:
    value = node.args[0].meta["val"]
    dims = node.args[1] if len(node.args) > 1 else None
    if value.dim() not in (3, 4, 5) or not isinstance(dims, (list, tuple)) or node.kwargs.get("dtype") is not None:
        return False
    return sorted(d % value.dim() for d in dims) == list(range(2, value.dim()))


def _average_pool(node: Node, module: nn.Module | None) -> tuple[type[qnn.Block], tuple[Any, ...]]:
    """The block of an average pool and its first arguments."""
    value = node.args[0].meta["val"]
    if node.target is _aten.mean:
        keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        return (qnn.ADAPTIVE_POOLS if keep else qnn.MEANS)[value.dim() - 2], (1,)
    dims = {**_AVERAGE_FUNCTIONS, **_ADAPTIVE_FUNCTIONS}.get(node.target) or int(type(module).__name__[-2])
    _must(value.dim() == dims + 2, f"average pool: the input must have {dims + 2} dimensions (got {value.dim()})")
    if type(module) in _ADAPTIVES or node.target in _ADAPTIVE_FUNCTIONS:
        size = module.output_size if module is not None else node.args[1]
        sizes = tuple(size) if isinstance(size, (list, tuple)) else (size,) * dims
        _must(all(isinstance(s, int) for s in sizes), f"adaptive average pool: sizes must be numbers (got {sizes})")
        return qnn.ADAPTIVE_POOLS[dims], (sizes,)
    if module is not None:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        args = [getattr(module, name, None) for name in names]
    else:
        defaults = (None, None, 0, False, True, None)
        given = dict(zip(range(6), node.args[1:], strict=False))
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        args = [node.kwargs.get(n, given.get(i, defaults[i])) for i, n in enumerate(names)]
        args[1] = args[1] or args[0]
    spread = [v if isinstance(v, int) or v is None else tuple(v) * (dims if len(v) == 1 else 1) for v in args[:3]]
    return qnn.AVERAGE_POOLS[dims], (*spread, *args[3:])


def _is_zero_pad(node: Node) -> bool:
    if node.target not in PADS:
        return False
    named = node.kwargs
    if node.target is _aten.pad:
        mode, value = (*node.args[2:], *(named.get("mode", "constant"), named.get("value"))[len(node.args) - 2 :])
        return mode == "constant" and value in (None, 0)
    return (node.args[2] if len(node.args) > 2 else named.get("value", 0)) == 0


def _is_nearest(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest"


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
