"""Lifts an exported, functional ATen graph back to calls of the model's own modules."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .module_graph import ModuleGraph, is_none
from .trace import is_stochastic

_aten = torch.ops.aten
_DROPOUTS = {
    _aten.dropout: lambda dim: nn.Dropout,
    _aten.feature_dropout: lambda dim: {3: nn.Dropout1d, 5: nn.Dropout3d}.get(dim, nn.Dropout2d),
    _aten.alpha_dropout: lambda dim: nn.AlphaDropout,
    _aten.feature_alpha_dropout: lambda dim: nn.FeatureAlphaDropout,
}
# They only restate what the example already fixed, or copy a constant nobody writes to.
_TRANSPARENT = (_aten.alias, _aten.lift_fresh_copy, _aten.lift)
# What is a view in the strides of the example need not be one in others: channels_last, or codes, channels innermost.
_IN_ANY_STRIDES = {_aten.view.default: _aten.reshape, _aten.view_as.default: _aten.reshape_as}


def lift(root: nn.Module, program: ExportedProgram) -> ModuleGraph:
    """Returns the module graph of `program` over the modules of `root`, the module that was exported."""
    return _Lifter(root, program).run()


class _Lifter:
    def __init__(self, root: nn.Module, program: ExportedProgram) -> None:
        self.root, self.program = root, program
        self.graph = fx.Graph()
        self.value: dict[Node, Any] = {}  # exported node -> node (or constant) of the new graph
        self.names = _Names(name for name, _ in root.named_modules())
        self.modules = dict(root.named_modules(remove_duplicate=False))
        # A module or parameter registered twice is known by its first name.
        self.module_name = {id(module): name for name, module in root.named_modules()}
        self.tensor_name = {id(t): name for name, t in (*root.named_parameters(), *root.named_buffers())}
        self.state = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def run(self) -> ModuleGraph:
        calls = self._module_calls()
        owned = {node: call for call in calls for node in call.nodes}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function" and node not in owned:
                self._function(node)
            elif node.op == "get_attr":
                raise CaptureError(f"capture: forward must not use torch.cond, torch.autocast or the like (got {node})")
            elif node in owned and node is owned[node].output:
                self._module(owned[node])
        self._output()
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output") and node.target is not torch._assert:
                self.graph.erase_node(node)
        result = ModuleGraph(self.root, self.graph)
        result.unreached = _unreached(result)
        return result

    # Which nodes are the forward of one leaf module.

    def _module_calls(self) -> list[_Call]:
        groups: dict[str, list[Node]] = defaultdict(list)
        for node in self.program.graph.nodes:
            if node.op == "call_function" and (stack := node.meta.get("nn_module_stack")):
                groups[next(reversed(stack))].append(node)
        calls = (self._module_call(nodes) for nodes in groups.values())
        return [call for call in calls if call is not None]

    def _module_call(self, nodes: list[Node]) -> _Call | None:
        """One tensor in, one tensor out, through a module of torch.nn that has nothing of the user's in it."""
        module = self._owner(nodes[0])
        if module is None or not _is_leaf(module):
            return None
        inside = set(nodes)
        inputs = {n for node in nodes for n in node.all_input_nodes if n not in inside and self._is_activation(n)}
        outputs = [node for node in nodes if any(user not in inside for user in node.users)]
        if len(inputs) != 1 or len(outputs) != 1 or outputs[0].target is operator.getitem:
            return None
        if any(_overrides_output_size(node, module) for node in nodes):
            return None
        return _Call(module, nodes, inputs.pop(), outputs[0])

    def _is_activation(self, node: Node) -> bool:
        is_state = node.op == "placeholder" and self.state[node.name].kind is not InputKind.USER_INPUT
        return not is_state and isinstance(node.meta.get("val"), torch.Tensor)

    def _owner(self, node: Node) -> nn.Module | None:
        path, _ = next(reversed(node.meta["nn_module_stack"].values()))
        return self.modules.get(path)

    # Making the new nodes.

    def _create(
        self, name: str, like: Node, op: str, target: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Node:
        node = self.graph.create_node(op, target, args, kwargs or {}, name=name.replace(".", "_"))
        node.meta = {key: like.meta[key] for key in ("val", "stack_trace") if key in like.meta}
        node.meta["octet_name"] = name
        return node

    def _placeholder(self, node: Node) -> None:
        spec = self.state[node.name]
        if spec.kind is not InputKind.USER_INPUT:
            return  # read on first use
        fixed = isinstance(spec.arg, ConstantArgument)
        # Python wants arguments with a default last.
        last = all(isinstance(n.meta["val"], (bool, int, float, str, type(None))) for n in self._inputs_after(node))
        default = (spec.arg.value,) if fixed and last else ()
        self.value[node] = self._create(self.names.unique(node.name), node, "placeholder", node.name, default)
        if fixed:
            self._fix(self.value[node], spec.arg.value)

    def _inputs_after(self, node: Node) -> list[Node]:
        inputs = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        return inputs[inputs.index(node) + 1 :]

    def _fix(self, node: Node, value: Any) -> None:
        """Forward was traced with this constant, so it must not come with another value."""
        node.type = torch.Tensor | None if value is None else type(value)
        holds = self._create(
            self.names.unique(f"{node.name}.fixed"),
            node,
            "call_function",
            is_none if value is None else operator.eq,
            (node,) if value is None else (node, value),
        )
        message = f"input {node.target!r} must be {value!r}, the constant that the model was captured with"
        self._create(self.names.unique(f"{node.name}.check"), node, "call_function", torch._assert, (holds, message))

    def _read(self, node: Node) -> Any:
        """The new node for an exported one; parameters, buffers and constants are fetched where first needed."""
        if node not in self.value:
            spec = self.state[node.name]
            name = (
                self._constant(spec.target) if spec.kind is InputKind.CONSTANT_TENSOR else self._state_name(spec.target)
            )
            self.value[node] = self._create(self.names.unique(name), node, "get_attr", name)
        return self.value[node]

    def _state_name(self, name: str) -> str:
        owner, _, leaf = name.rpartition(".")
        return self.tensor_name.get(id(getattr(self.root.get_submodule(owner), leaf)), name)

    def _constant(self, target: str) -> str:
        """Registers a tensor that forward made or that is a plain attribute as a buffer no checkpoint sees."""
        name = "constant_" + target.replace(".", "_")
        while hasattr(self.root, name):
            name += "_"
        self.root.register_buffer(name, self.program.constants[target].detach().clone(), persistent=False)
        return name

    def _module(self, call: _Call) -> None:
        path = self.module_name[id(call.module)]
        name = self.names.call(path)
        self.value[call.output] = self._create(name, call.output, "call_module", path, (self._read(call.input),))

    def _function(self, node: Node) -> None:
        packet = getattr(node.target, "overloadpacket", node.target)
        op = getattr(packet, "__name__", str(packet))
        if op.startswith(("_assert", "sym_constrain", "_check")):
            return
        if (same := _same_as(node)) is not None:
            self.value[node] = self._read(same)
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._read)
        path = self._path(node)
        if packet in _DROPOUTS and node.args[2] is False:
            self.value[node] = self._dropout(node, path, args[0])
            return
        if packet is _aten.batch_norm and self._reclass_batch_norm(node):
            name = self.names.call(path)
            self.value[node] = self._create(name, node, "call_module", path, (args[0],))
            return
        name = self.names.unique(f"{path}.{op}" if path else op)
        if packet is _aten.sym_size:  # the spelling that TorchScript takes
            self.value[node] = self._create(name, node, "call_method", "size", args, kwargs)
        else:
            packet = _IN_ANY_STRIDES.get(node.target, packet)
            self.value[node] = self._create(name, node, "call_function", packet, args, kwargs)

    def _path(self, node: Node) -> str:
        owner = self._owner(node) if node.meta.get("nn_module_stack") else None
        return self.module_name[id(owner)] if owner is not None else ""

    def _dropout(self, node: Node, path: str, value: Node) -> Node:
        """`F.dropout(x, p, self.training)` left the p and a False; a module brings the training flag back."""
        packet = node.target.overloadpacket
        owner = self.root.get_submodule(path)
        name = self.names.unique(f"{path}.{packet.__name__}" if path else packet.__name__)
        module = _DROPOUTS[packet](node.meta["val"].dim())(node.args[1])
        owner.add_module(name.rpartition(".")[2], module)
        return self._create(name, node, "call_module", name, (value,))

    def _reclass_batch_norm(self, node: Node) -> bool:
        """A subclass that normalizes and then does more in its forward becomes torch's own class: it keeps its state
        and children, and the graph does the rest. A functional batch norm would never update its statistics.
        """
        owner = self._owner(node)
        if not isinstance(owner, nn.modules.batchnorm._BatchNorm) or self._read(
            node.args[3]
        ).target != self._state_name(f"{self._path(node)}.running_mean".lstrip(".")):
            return False
        owner.__class__ = next(c for c in type(owner).__mro__ if c.__module__ == "torch.nn.modules.batchnorm")
        return True

    def _output(self) -> None:
        (exported,) = (node for node in self.program.graph.nodes if node.op == "output")
        specs = self.program.graph_signature.output_specs
        leaves = [
            self._read(value) if isinstance(value, Node) else value
            for value, spec in zip(exported.args[0], specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        result = pytree.tree_unflatten(leaves, self.program.call_spec.out_spec)
        self._create("output", exported, "output", "output", (_plain(result),))


class _Call:
    """One call of a leaf module: the exported nodes of its forward, the one they read and the one others read."""

    def __init__(self, module: nn.Module, nodes: list[Node], input: Node, output: Node) -> None:
        self.module, self.nodes, self.input, self.output = module, nodes, input, output


class _Names:
    """Hands out names: a module's own for its first call, otherwise with _1, _2, ..."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = set(modules)
        self.used: set[str] = {"output"}
        self.attributes = set(dir(nn.Module()))  # `x.to(...)`: no child can be called so

    def call(self, path: str) -> str:
        if path in self.used:
            return self.unique(path)
        self.used.add(path)
        return path

    def unique(self, base: str) -> str:
        name, count = base, 0
        while name in self.used or name in self.modules or name.rpartition(".")[2] in self.attributes:
            count += 1
            name = f"{base}_{count}"
        self.used.add(name)
        return name


def _is_leaf(module: nn.Module) -> bool:
    """A childless module of torch.nn, as torch wrote it: no subclass, parametrization, hook or patched forward."""
    if is_stochastic(module):
        return True
    patched = "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("torch.nn.modules.") and not module._modules and not patched


def _overrides_output_size(node: Node, module: nn.Module) -> bool:
    """Whether a transposed convolution was called with an output_size, which a call with one argument would lose."""
    if not getattr(node.target, "__name__", "").startswith("conv_transpose"):
        return False
    padding = node.args[5] if len(node.args) > 5 else [0] * len(module.output_padding)
    return tuple(padding) != tuple(module.output_padding)


def _is_full(bounds: tuple) -> bool:
    """Whether the (start, end, step) of a slice, or the first of them, take everything: `x[:, 1]` begins with one."""
    start, end, step = (*bounds, *(None, None, 1)[len(bounds) :])
    return start in (None, 0) and end in (None, 2**63 - 1) and step == 1


def _same_as(node: Node) -> Node | None:
    """The argument that `node` only repeats."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _TRANSPARENT or (packet is _aten.slice and _is_full(node.args[2:])):
        return node.args[0]
    return node.args[1] if packet is _aten.slice_scatter and _is_full(node.args[3:]) else None


def _plain(value: Any) -> Any:
    """The output as nested built-in containers, which is what a graph and TorchScript can return."""
    if value is None or isinstance(value, (Node, bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        items = [_plain(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    raise CaptureError(f"capture: the model must return tensors in tuples, lists or dicts (got {type(value).__name__})")


def _unreached(graph: ModuleGraph) -> list[str]:
    """Outermost modules that have parameters, none of which the graph reads."""
    targets = [node.target for node in graph.graph.nodes if node.op in ("call_module", "get_attr")]
    read: set[int] = set()
    for target in targets:
        owner, _, leaf = target.rpartition(".")
        value = getattr(graph.get_submodule(owner), leaf)
        read.update(id(p) for p in (value.parameters() if isinstance(value, nn.Module) else [value]))
    found: list[str] = []
    for name, module in graph.named_modules():
        parameters = list(module.parameters())
        outer = any(name.startswith(f"{other}.") for other in found)
        if name and parameters and not outer and not any(id(p) in read for p in parameters):
            found.append(name)
    return found
