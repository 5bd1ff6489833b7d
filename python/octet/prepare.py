"""From a float model to one that trains and evaluates as its INT8 form will: `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from . import _C
from .capture import ModuleGraph, capture
from .errors import PrepareError, StateDictError
from .fuse import Island, Operator, Role, Tied, fuse
from .grids import GridPlan, island_reasons, plan_grids
from .network import LoweredGraph
from .nn import Block, FakeQuantize, MaxPool, ReLU6, ToFloat
from .nn.grid_set import GridSet
from .patterns import MAX_POOL_FUNCTIONS, MAX_POOLS, label, max_pool_windows, plain_move
from .spec import Recipe, Spec

ROOT = "octet"
"""The child that holds the blocks and grids of a prepared model."""


@dataclass
class Row:
    """One line of a report: a layer, what it is (a class name), whether it is INT8, and if not, why."""

    name: str
    kind: str
    int8: bool
    reason: str = ""


class QATModel(ModuleGraph):
    """What `prepare` returns: the model's own modules under their own names, and under `octet` the blocks over them.

    Trains in an ordinary loop. `.train()` observes and fake-quantizes; `.eval()` never observes and gives the bits of
    the INT8 model. `deepcopy`, `state_dict`, optimizers work as on the original; a state_dict of the original, which
    has no quantization buffers, loads too. A forward that raises leaves no trace in the ranges. Layers may be replaced
    by others of their kind, and buffers written by hand, as a moving average of weights does. Hooks on a layer that a
    block runs do not fire; parametrizations (`torch.nn.utils.parametrize`) do.
    """

    def __init__(self, root: nn.Module, graph: Graph, class_name: str | None = None) -> None:
        super().__init__(root, graph, class_name)
        self.register_forward_pre_hook(_follow)
        self.register_forward_hook(_forget_if_raised, always_call=True)

    @property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.get_submodule(ROOT)._rows]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Also lets the blocks refer to the layers that are there now, as `convert_sync_batchnorm` leaves new ones."""
        super().add_module(name, module)
        if ROOT in self._modules:
            self.get_submodule(ROOT)._follow(self)

    def train(self, mode: bool = True) -> QATModel:
        super().train(mode)
        if self.get_submodule(ROOT)._freeze_bn:
            freeze_float_norms(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict of this model, or of the float model it was made of (no key beginning with `octet.`).

        Raises:
            StateDictError: with strict, keys or shapes that do not fit; nothing was changed.
        """
        if strict:
            check_state(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    recipe: Recipe | None = None,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    low_memory: bool = False,
) -> QATModel:
    """Returns a copy of `model` for quantization-aware training; `model` itself is left alone.

    The first forward in training mode only observes; from the second on layers compute with fake-quantized weights and
    activations.

    Args:
        model: any module that `octet.capture.capture` takes.
        args, kwargs, dynamic_shapes: the example call, as for `capture`. The batch size stays free.
        recipe: bits, observers, and what stays float.
        low_memory: keep only what a block takes in (convolutions: its codes, and one bit per element of the output) for
            the backward pass and compute the rest again.

    Raises:
        CaptureError: the model cannot be captured.
        PrepareError: a layer whose sums do not fit the accumulator, an override that names nothing, a child `octet`.
        TypeError: no module, or a recipe that is none.
    """
    recipe = recipe or Recipe()
    for what, value, kind in (("model", model, nn.Module), ("recipe", recipe, Recipe)):
        if not isinstance(value, kind):
            raise TypeError(f"prepare: the {what} must be a {kind.__name__} (got {type(value).__name__})")
    if isinstance(model, LoweredGraph):
        raise PrepareError("prepare: the model must be a float one (got an INT8 model, which octet.convert made)")
    _check_names(model)
    graph = capture(model, args, kwargs, dynamic_shapes)
    _check_overrides(graph, recipe)
    roles = fuse(graph, recipe)
    _check_calls(roles)
    return _Builder(graph, roles, plan_grids(graph.graph, roles), recipe, low_memory).run()


def _follow(model: QATModel, args: Any) -> None:
    if not torch.compiler.is_compiling():
        model.get_submodule(ROOT)._follow(model)


def _forget_if_raised(model: QATModel, args: Any, output: Any) -> None:
    if output is None:  # what hooks get of a forward that raised
        model.get_submodule(ROOT)._forget()


def freeze_float_norms(model: nn.Module, freeze: bool = True) -> None:
    """Puts batch norms that no block runs into evaluation mode, or back into that of the model."""
    owned = {id(m.bn) for m in model.modules() if isinstance(m, Block) and hasattr(m, "bn")}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in owned:
            module.train(model.training and not freeze)


class _Builder:
    """Replaces operators by blocks and puts grids where the plan wants them."""

    def __init__(
        self, graph: ModuleGraph, roles: dict[Node, Role], plan: GridPlan, recipe: Recipe, low_memory: bool
    ) -> None:
        self.graph, self.roles, self.plan, self.recipe, self.low_memory = graph, roles, plan, recipe, low_memory
        self.root = GridSet()
        self.grids: dict[Node, FakeQuantize] = {}  # by first node of the class
        self.blocks: dict[Any, str] = {}  # operator key -> target

    def run(self) -> QATModel:
        rows = [asdict(row) for row in self._rows()]
        self.graph.add_module(ROOT, self.root)
        self.root._rows = rows
        self.heads = {role.nodes[0] for role in self.roles.values() if isinstance(role, Operator)}
        self._make_entries()
        for node in list(self.graph.graph.nodes):
            role = self.roles.get(node)
            if isinstance(role, Operator):
                self._replace(node, role)
            elif isinstance(role, Tied) and node in self.plan.classes:
                self._replace_tied(node, role)
        self._leave()
        self._end()
        return QATModel(self.graph, self.graph.graph)

    def _rows(self) -> list[Row]:
        reasons = island_reasons(self.roles, self.plan)
        modules = dict(self.graph.named_modules())
        rows = []
        for node, role in self.roles.items():
            covered = role.nodes if isinstance(role, Operator) else [node]
            kind = " + ".join(label(part, modules) for part in covered)
            rows.append(Row(covered[0].meta["octet_name"], kind, node not in reasons, reasons.get(node, "")))
        return rows

    # Grids.

    def _make_entries(self) -> None:
        """Entries come before all readers, so each either makes the grid of its class or finds it made."""
        for node in self.plan.entries:
            grid = self._grid(node, None)
            if grid.name == self._grid_name(node) and not self._has(grid.name):
                self._register(grid.name, grid)
            target = f"{ROOT}.{grid.name}"
            with self.graph.graph.inserting_after(self._last_placeholder(node)):
                # Not call_module, which wants the target at once: it may be the output of a block not yet made.
                entry = self.graph.graph.create_node("call_module", target, (node,))
            entry.meta = {**node.meta, "octet_name": f"{node.meta['octet_name']}_quantize"}
            for user in list(node.users):
                if user is not entry and self._reads_codes(user):
                    user.replace_input_with(node, entry)

    def _last_placeholder(self, node: Node) -> Node:
        if node.op != "placeholder":
            return node
        return [n for n in self.graph.graph.nodes if n.op == "placeholder"][-1]

    def _reads_codes(self, user: Node) -> bool:
        role = self.roles.get(user)
        if isinstance(role, Tied):
            return user in self.plan.classes
        return user in self.heads

    def _grid(self, node: Node, output: FakeQuantize | None) -> FakeQuantize:
        """The grid of the class of `node`, made at its first use: `output` of a block, or a new one."""
        first = self.plan.classes[node]
        if first not in self.grids:
            grid = output if output is not None else FakeQuantize(self._spec(first))
            grid.name = self._grid_name(first)
            self.grids[first] = grid
            self.root._take(grid, self.plan.components[first])
        return self.grids[first]

    def _grid_name(self, first: Node) -> str:
        role = self.roles.get(first)
        return f"{role.name}.output" if isinstance(role, Operator) else first.meta["octet_name"]

    def _spec(self, first: Node) -> Spec:
        """The Spec of a class: the first override among those that produce its values, or the default."""
        for node, head in self.plan.classes.items():
            if head is first:
                override = self._override(node)
                if override is not None:
                    return override
        return self.recipe.activations

    def _override(self, node: Node) -> Spec | None:
        role = self.roles.get(node)
        head = role.nodes[0] if isinstance(role, Operator) else node
        module = self.graph.get_submodule(head.target) if head.op == "call_module" else None
        name = head.target if head.op == "call_module" else head.meta["octet_name"]
        found = self.recipe.override_for(name, module)
        return found if isinstance(found, Spec) else None

    # Blocks.

    def _replace(self, node: Node, role: Operator) -> None:
        target = self.blocks.get(role.key)
        if target is None:
            target = self.blocks[role.key] = f"{ROOT}.{role.name}"
            self._register(role.name, self._block(node, role))
        with self.graph.graph.inserting_after(node):
            call = self.graph.graph.call_module(target, tuple(self._current_operands(role)))
        call.meta = {**node.meta, "octet_name": role.nodes[0].meta["octet_name"]}
        node.replace_all_uses_with(call)
        for covered in reversed(role.nodes):
            self.graph.graph.erase_node(covered)
        self._rename(node, call)

    def _current_operands(self, role: Operator) -> list[Node]:
        """What the first node reads now: earlier replacements changed its arguments."""
        return [arg for arg in role.nodes[0].args[: len(role.operands)] if isinstance(arg, Node)]

    def _rename(self, node: Node, call: Node) -> None:
        """Moves what the plan knows about a replaced node to its block."""
        self.plan.classes[call] = self.plan.classes[node]

    def _block(self, node: Node, role: Operator) -> Block:
        inputs = [self.grids[self.plan.classes[operand]] for operand in role.operands]
        self._check_accumulator(role, inputs)
        first = self.plan.classes[node]
        weights = self._override(node) or self.recipe.weights
        shared = None if first is node else self.grids[first]
        block = role.make(*inputs, output=shared, activations=self._spec(first), weights=weights)
        if first is node:  # an entry on the same grid may have made it already
            block.output = self._grid(node, block.output)
        block.low_memory = self.low_memory
        block.name = role.name
        return block

    def _check_accumulator(self, role: Operator, inputs: list[FakeQuantize]) -> None:
        if not role.taps:
            return
        weights = self._override(role.nodes[-1]) or self.recipe.weights
        grid = inputs[0]
        largest = grid.qmax - (2 ** (grid.bits - 1) if grid.symmetric else grid.qmin)
        total = role.taps * largest * (2 ** (weights.bits - 1) - 1)
        if total >= _C.accumulator_limit:  # rule 5
            raise PrepareError(
                f"prepare: {role.name}: products per output * largest codes must be below {_C.accumulator_limit} "
                f"(got {role.taps} products, {total}); use fewer bits there or octet.Float"
            )

    def _replace_tied(self, node: Node, role: Tied) -> None:
        """Nodes that stay on the grid of their input but do more than move values."""
        module = self.graph.get_submodule(node.target) if node.op == "call_module" else None
        if role.relu6:
            self._call_instead(node, ReLU6(self._grid(node, None)))
        elif type(module) in MAX_POOLS or node.target in MAX_POOL_FUNCTIONS:
            self._call_instead(node, MaxPool(*max_pool_windows(node, module)))
        elif (plain := plain_move(node, module)) is not None:
            self._call_instead(node, plain)

    def _call_instead(self, node: Node, module: nn.Module) -> None:
        name = node.meta["octet_name"]
        self._register(name, module)
        with self.graph.graph.inserting_after(node):
            call = self.graph.graph.call_module(f"{ROOT}.{name}", (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        self.graph.graph.erase_node(node)
        self._rename(node, call)

    def _leave(self) -> None:
        """Float parts read values on a grid through one `ToFloat`."""
        self._register("_to_float", ToFloat())
        on_grid = [n for n in self.graph.graph.nodes if n in self.plan.classes and n not in self.plan.entries]
        for node in on_grid:
            readers = [user for user in node.users if self._is_float(user)]
            if not readers:
                continue
            with self.graph.graph.inserting_after(node):
                call = self.graph.graph.call_module(f"{ROOT}._to_float", (node,))
            call.meta = {**node.meta, "octet_name": f"{node.meta['octet_name']}_to_float"}
            for user in readers:
                user.replace_input_with(node, call)

    def _is_float(self, node: Node) -> bool:
        role = self.roles.get(node)
        return isinstance(role, Island) or (isinstance(role, Tied) and node not in self.plan.classes)

    def _end(self) -> None:
        """The ranges of a forward are committed when all of it is computed."""
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        with self.graph.graph.inserting_before(output):
            commit = self.graph.graph.call_module(ROOT)
        commit.meta["octet_name"] = f"{ROOT}.commit"
        self.root._links = self._links()
        self.graph.graph.lint()

    def _links(self) -> list[tuple[str, str, str]]:
        """The layers and batch norms that blocks refer to, by name."""
        names = {id(module): name for name, module in self.graph.named_modules() if not name.startswith(f"{ROOT}.")}
        return [
            (block, attribute, names[id(module)])
            for block, owner in self.root.named_modules()
            for attribute, module in owner.__dict__.items()
            if id(module) in names
        ]

    # Registration under the root.

    def _has(self, name: str) -> bool:
        try:
            return isinstance(self.root.get_submodule(name), (Block, FakeQuantize))
        except AttributeError:
            return False

    def _register(self, name: str, module: nn.Module) -> None:
        """Adds `module` as `name` below the root; containers a name passes through are made as plain modules."""
        owner: nn.Module = self.root
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        owner.add_module(leaf, module)
        if owner.training != self.graph.training:
            module.train(self.graph.training)


def _check_names(model: nn.Module) -> None:
    """No layer may have a name that the prepared or the converted model uses itself."""
    taken = {ROOT, "_to_float", "unreached", "about", "input_grids", "output_grids"}
    taken |= {*dir(QATModel), *dir(LoweredGraph), *dir(GridSet())} - set(dir(nn.Module()))
    for name, _ in model.named_children():
        if name in taken:
            raise PrepareError(f"prepare: no child of the model may be named {name!r}, which octet needs; rename it")


def _check_calls(roles: dict[Node, Role]) -> None:
    """A layer that a block runs must not be called by a float part too: who would own its batch statistics?"""
    layers = {node: role for node, role in roles.items() if node.op == "call_module"}
    floats = {node.target: role.reason for node, role in layers.items() if isinstance(role, Island)}
    for role in roles.values():
        for node in role.nodes if isinstance(role, Operator) else ():
            if node.op == "call_module" and node.target in floats:
                raise PrepareError(
                    f"prepare: {node.target}: all calls of one layer must be INT8 or all float (got both, float as it "
                    f"{floats[node.target]}); use two layers, or octet.Float for this one"
                )


def _check_overrides(graph: ModuleGraph, recipe: Recipe) -> None:
    """Every name in the recipe must be that of a module, a node, or something they lie in."""
    names = {name for name, _ in graph.named_modules()} | {node.meta["octet_name"] for node in graph.graph.nodes}
    for key in recipe.overrides:
        if isinstance(key, str) and key not in names:
            raise PrepareError(f"prepare: override {key!r} must name a module or operation (got none such)")


def check_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raises StateDictError unless `state` fits: all keys, or all but those of the quantization."""
    own = model.state_dict()
    plain = {key: value for key, value in own.items() if not key.startswith(f"{ROOT}.")}
    expected = own if any(key.startswith(f"{ROOT}.") for key in state) else plain
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} {_shape(state[key])} instead of {_shape(value)}"
        for key, value in expected.items()
        if key in state and _shape(state[key]) != _shape(value)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:5])}" for what, keys in problems.items() if keys)
    if found:
        raise StateDictError(
            "load_state_dict: the state must have the keys and shapes of this model or of its float original "
            f"(got {found}); nothing was changed"
        )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
