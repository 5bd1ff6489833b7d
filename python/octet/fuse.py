"""Which nodes of a captured graph become integer operators, which keep the grid of their input, which stay float."""

from __future__ import annotations

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
from .patterns import (
    ADAPTIVE_FUNCTIONS,
    ADAPTIVES,
    AVERAGE_FUNCTIONS,
    AVERAGES,
    NORMS,
    WEIGHTED,
    activation_of,
    average_pool,
    is_getitem,
    is_global_mean,
    is_tensor,
    keeps_grid,
    label,
    max_pool_dims,
    must,
    tied_operands,
)
from .spec import Float, Recipe

_aten = torch.ops.aten


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
        """Not pools: they clamp nothing."""
        layer = type(self._module(node)) in (*WEIGHTED, *NORMS) or node.target in (_aten.add, _aten.sub)
        return is_tensor(node) and layer

    def _is_average(self, node: Node) -> bool:
        functions = (_aten.mean, *AVERAGE_FUNCTIONS, *ADAPTIVE_FUNCTIONS)
        return type(self._module(node)) in (*AVERAGES, *ADAPTIVES) or node.target in functions

    def _chain(self, head: Node) -> _Chain:
        chain = _Chain(head)
        bn = self._only_user(head)
        if type(self._module(head)) in WEIGHTED and bn is not None and self._norms_channels(head, bn):
            chain.bn = bn
        last = self._only_user(chain.nodes[-1])
        found = activation_of(last, self.modules) if last is not None and not self._is_float(last) else None
        if found is not None:
            chain.end, chain.activation = last, found
        return chain

    def _norms_channels(self, layer: Node, bn: Node) -> bool:
        """Whether `bn` normalizes the output channels of `layer` and may be part of its block."""
        norm, module = self._module(bn), self._module(layer)
        if type(norm) not in NORMS or norm.running_mean is None or self._is_float(bn):
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
        if type(module) in WEIGHTED:
            return self._weighted(chain, module)
        if type(module) in NORMS:
            return self._batch_norm(chain, module)
        if self._is_average(node):
            return self._average(chain, module)
        return self._add(chain) if node.target in (_aten.add, _aten.sub) else None

    def _weighted(self, chain: _Chain, layer: nn.Module) -> Operator:
        dims = layer.weight.dim()
        if isinstance(layer, nn.Linear):
            must(layer.weight.is_floating_point(), "Linear: weight must be floating point")
        else:
            geometry(layer)
            got = chain.head.meta["val"].dim()
            must(got == dims, f"{type(layer).__name__}: the input must have {dims} dimensions (got {got})")
        bn = self._module(chain.bn) if chain.bn else None
        kind = qnn.block_type(layer, bn is not None, chain.activation)

        def make(input: qnn.FakeQuantize, **specs: Any) -> qnn.Block:
            return kind.wrap(layer, bn, chain.activation, input=input, **specs)

        return self._make(chain, [chain.head.args[0]], make, taps=layer.weight[0].numel())

    def _batch_norm(self, chain: _Chain, bn: _BatchNorm) -> Operator:
        must(bn.running_mean is not None, f"{type(bn).__name__}: needs running statistics (got None)")
        before = chain.head.args[0]
        layer = isinstance(self._module(before), (_ConvNd, nn.Linear))
        must(not (layer and isinstance(self.roles.get(before), Island)), "belongs to a layer that is float")
        kind = qnn.batch_norm_type(chain.head.args[0].meta["val"].dim())

        def make(input: qnn.FakeQuantize, weights: Any, **specs: Any) -> qnn.Block:
            return kind.wrap(bn, chain.activation, input=input, **specs)

        return self._make(chain, [chain.head.args[0]], make)

    def _average(self, chain: _Chain, module: nn.Module | None) -> Operator | None:
        head = chain.head
        if head.target is _aten.mean and not is_global_mean(head):
            return None
        kind, args = average_pool(head, module)

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
        must(shapes[0] == shapes[1], "add: operands must have one shape")
        subtract = (node.target is _aten.sub) == (alpha == 1)
        kind = qnn.AddReLU if chain.activation else qnn.Add

        def make(a: qnn.FakeQuantize, b: qnn.FakeQuantize, weights: Any, **specs: Any) -> qnn.Block:
            return kind(a, b, subtract=subtract, activation=chain.activation, **specs)

        return self._make(chain, operands, make, adds=True)

    def _make(self, chain: _Chain, operands: list[Node], make: Callable[..., qnn.Block], **more: Any) -> Operator:
        must(all(is_tensor(operand) for operand in operands), "the input must be a floating tensor")
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
        return Tied(operands) if keeps_grid(node, self.modules) or self._is_max_pool(node) else None

    def _is_max_pool(self, node: Node) -> bool:
        dims, got = max_pool_dims(node, self._module(node)), node.args[0].meta["val"].dim()
        must(dims in (0, got - 2), f"max pool: the input must have {dims + 2} dimensions (got {got})")
        return dims > 0

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
