"""Whole networks in one call: `lower` turns the integer parts of a converted model into `Network` modules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import _C, ops
from .capture import ModuleGraph
from .network_moves import FLATTEN, Writer, move_writer
from .nn import int8
from .nn.fake_quantize import keeping_dtype

_GLOBAL_HOOKS = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
_VERSION = 1  # kProgramVersion, and below the opcodes, of csrc/octet/kernels/network.h
_QUANTIZE, _DEQUANTIZE, _CONV, _LINEAR, _ADD, _MUL, _MAX_POOL = range(1, 8)
_AVG_POOL, _ADAPTIVE, _TABLE, _CAT, _, _NORM = range(8, 14)


class Network(nn.Module):
    """The part of a converted model between two float islands (or all of it) as one call of `octet::run_network`.

    Buffers, one-dimensional: `program` (int64), `weights` (int8), `biases` (int32), `numbers` (float32).
    """

    def __init__(self, program: Tensor, weights: Tensor, biases: Tensor, numbers: Tensor) -> None:
        super().__init__()
        self.register_buffer("program", program)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self.register_buffer("numbers", numbers)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        if torch.jit.is_scripting():
            return ops.run_network(inputs, self.program, self.weights, self.biases, self.numbers)
        held = self._buffers  # looked up in nn.Module's roundabout way, four tensors cost as much as the call
        return ops.run_network(inputs, held["program"], held["weights"], held["biases"], held["numbers"])

    __call__ = forward  # nobody hooks into what lowering made, and nn.Module's own takes a microsecond


class LoweredGraph(ModuleGraph):
    """A graph of INT8 modules that runs lowered.

    Graph and modules are the truth: what is lowered from them is made again after they were moved, loaded or rewired,
    and holds the same weights, biases and multipliers, so that changing those in place (not through `.data`, of which
    torch keeps no count) acts on the next call. After giving a module another tensor or number call `recompile()`.
    Casts (`.half()`, ...) have no effect: the numbers of an INT8 model are what they are.
    In a compiler's hands it is the plain graph.
    """

    def recompile(self) -> Any:
        code = super().recompile()
        cls = type(self)  # fx gives every instance a class of its own
        cls._forward_by_module, cls.forward = cls.forward, _forward_lowered
        cls.__call__ = _call_lowered
        self._forget()
        return code

    def lowered(self) -> fx.GraphModule:
        """The form that runs; also the one to script. Made on first use."""
        if "_lowered" not in self.__dict__:
            lowered = lower(self)
            self.__dict__.update(_lowered=lowered, _arrays=_arrays_of_whole(lowered))
        return self.__dict__["_lowered"]

    def __prepare_scriptable__(self) -> fx.GraphModule:
        return self.lowered()

    def _forget(self) -> None:
        self.__dict__.pop("_lowered", None)
        self.__dict__.pop("_arrays", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(keeping_dtype(fn), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)


def _call_lowered(self: LoweredGraph, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.__call__`; of a model that is one network, without the seven Python functions on the way to it.

    They take 5 us, twice that behind a network that emptied the caches: 7 % of ResNet-20's time for an image.
    """
    own = self.__dict__
    arrays = own.get("_arrays")
    if arrays is None or kwargs or len(args) != 1 or type(args[0]) is not Tensor or torch.compiler.is_compiling():
        return nn.Module.__call__(self, *args, **kwargs)
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or any(_GLOBAL_HOOKS):
        return nn.Module.__call__(self, *args, **kwargs)
    return _C.run_network(args[0], *arrays)


def _forward_lowered(self: LoweredGraph, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return self._forward_by_module(*args, **kwargs)
    return self.lowered().forward(*args, **kwargs)


def _arrays_of_whole(lowered: fx.GraphModule) -> list[Tensor] | None:
    """The arrays of the network that takes the model's one input and gives its one output; None for other models."""
    if [node.op for node in lowered.graph.nodes] != ["placeholder", "call_module", "call_function", "output"]:
        return None
    x, call, item, output = lowered.graph.nodes
    network = _module(call, lowered)
    whole = isinstance(network, Network) and call.args == ([x],) and output.args == (item,)
    return list(network._buffers.values()) if whole else None


def lower(model: fx.GraphModule) -> fx.GraphModule:
    """The same computation, each integer part of two steps or more as one `Network`, over the other modules.

    The weights, biases and multipliers of `model` become views of the networks' arrays, so that the two together hold
    them once. A model that is not on the CPU stays as it is.
    """
    nodes = list(model.graph.nodes)
    if any(tensor.device.type != "cpu" for tensor in model.buffers()):
        return fx.GraphModule(model, model.graph)
    codes = _on_codes(nodes, model)
    writers = {node: _writer(node, model) if node in codes or _is_dequantize(node, model) else None for node in nodes}
    levels = _levels(nodes, writers)
    parts: dict[int, list[fx.Node]] = {}
    for node in nodes:
        if writers[node] is not None:
            parts.setdefault(levels[node], []).append(node)
    parts = {level: part for level, part in parts.items() if len(part) > 1}
    return _Rewriter(model, parts, levels, writers).run()


def _on_codes(nodes: list[fx.Node], model: fx.GraphModule) -> set[fx.Node]:
    """The nodes that give codes: INT8 modules and what moves their codes. Float parts read dequantized values."""
    codes: set[fx.Node] = {n for n in nodes if n.op == "placeholder" and n.target in getattr(model, "input_grids", {})}
    for node in nodes:
        module = _module(node, model)
        moves = node.op in ("call_module", "call_function") and any(n in codes for n in node.all_input_nodes)
        if not _is_dequantize(node, model) and (moves or type(module) in _MODULES):
            codes.add(node)
    return codes


def _is_dequantize(node: fx.Node, model: fx.GraphModule) -> bool:
    return isinstance(_module(node, model), int8.Dequantize)


def _levels(nodes: list[fx.Node], writers: dict[fx.Node, Any]) -> dict[fx.Node, int]:
    """How often the longest way to a node changes between integer and float.

    Integer nodes of one level may run together: a way from one to the other that left the integers would have raised
    the level.
    """
    levels: dict[fx.Node, int] = {}
    for node in nodes:
        crossings = [levels[n] + ((writers[n] is None) != (writers[node] is None)) for n in node.all_input_nodes]
        levels[node] = max(crossings, default=0)
    return levels


class _Rewriter:
    """Builds the lowered graph. Sorted by level, a node still comes after all it reads."""

    def __init__(
        self,
        model: fx.GraphModule,
        parts: dict[int, list[fx.Node]],
        levels: dict[fx.Node, int],
        writers: dict[fx.Node, Writer | None],
    ) -> None:
        self.model, self.parts, self.levels, self.writers = model, parts, levels, writers
        self.part_of = {node: level for level, part in parts.items() for node in part}
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.value: dict[fx.Node, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        *nodes, output = self.model.graph.nodes
        done: set[int] = set()
        for node in sorted(nodes, key=lambda n: (n.op != "placeholder", self.levels[n])):
            level = self.part_of.get(node)
            if level is None:
                self._keep(node)
            elif level not in done:
                done.add(level)
                self._network(level)
        self._keep(output)
        return fx.GraphModule(self.modules, self.graph, "LoweredModel")

    def _keep(self, node: fx.Node) -> None:
        self.value[node] = self.graph.node_copy(node, self.value.__getitem__)
        if node.op == "call_module":
            self.modules[node.target] = self.model.get_submodule(node.target)
        elif node.op == "get_attr":
            holder, _, name = node.target.rpartition(".")
            self.modules[node.target] = getattr(self.model.get_submodule(holder), name)

    def _network(self, level: int) -> None:
        part = self.parts[level]
        inside = set(part)
        inputs = list(dict.fromkeys(n for node in part for n in node.all_input_nodes if n not in inside))
        outputs = [node for node in part if any(user not in inside for user in node.users)]
        name = f"network_{level}"
        self.modules[name] = _ProgramWriter(self.model, inputs, outputs, self.writers).write(part)
        results = self.graph.call_module(name, ([self.value[n] for n in inputs],))
        for i, node in enumerate(outputs):
            self.value[node] = self.graph.call_function(operator.getitem, (results, i))


class _ProgramWriter:
    """Collects the words and arrays of one program."""

    def __init__(
        self,
        model: fx.GraphModule,
        inputs: list[fx.Node],
        outputs: list[fx.Node],
        writers: dict[fx.Node, Writer | None],
    ) -> None:
        self.model, self.inputs, self.outputs, self.writers = model, inputs, outputs, writers
        self.index = {node: i for i, node in enumerate(inputs)}
        self.steps: list[list[int]] = []
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        self.numbers: list[Tensor] = []
        self.sizes = {"weights": 0, "biases": 0, "numbers": 0}
        self.places: list[tuple[nn.Module, str, str, int]] = []  # which module's buffer lies in which array, and where
        self.placed: dict[int, tuple[int, int, int]] = {}  # a module called twice has its weights once

    def write(self, part: list[fx.Node]) -> Network:
        fused = _fused_convolutions(part, set(self.outputs), self.model)
        for node in part:
            if node not in fused.values():
                writer = self.writers[node]
                assert writer is not None
                if node in fused:
                    self._fused_add(node, fused[node])
                else:
                    writer(self, node)
        outputs = [self.index[node] for node in self.outputs]
        words = [_VERSION, len(self.inputs), len(outputs), *outputs, len(self.steps)]
        words += [word for step in self.steps for word in step]
        arrays = (_concatenated(self.weights, torch.int8), _concatenated(self.biases, torch.int32))
        network = Network(torch.tensor(words), *arrays, _concatenated(self.numbers, torch.float32))
        for module, name, array, at in self.places:
            held = module._buffers[name]
            module._buffers[name] = network._buffers[array][at : at + held.numel()].view(held.shape)
        return network

    def step(self, node: fx.Node, opcode: int, *arguments: Any) -> None:
        words = [int(word) for word in _flat(arguments)]
        self.steps.append([opcode, len(words), *words])
        self.index[node] = len(self.inputs) + len(self.steps) - 1

    def module(self, node: fx.Node) -> Any:
        return self.model.get_submodule(node.target)

    def values(self, node: fx.Node) -> list[int]:
        return [self.index[n] for n in node.all_input_nodes]

    def number(self, value: float | Tensor) -> int:
        return self._place("numbers", torch.as_tensor(value, dtype=torch.float32))

    def table(self, entries: Tensor) -> int:
        return self._place("weights", entries.view(torch.int8))

    def weighted(self, module: int8._Weighted) -> list[int]:
        """Weights, biases and multipliers, zero points and bounds; the `residual` word is the caller's."""
        if id(module) not in self.placed:
            held = {"weight": "weights", "bias": "biases", "multiplier": "numbers"}
            at = {name: self._place(array, getattr(module, name)) for name, array in held.items()}
            self.places += [(module, name, array, at[name]) for name, array in held.items()]
            self.placed[id(module)] = tuple(at.values())
        return [*self.placed[id(module)], module.x_zero_point, module.y_zero_point, module.lo, module.hi]

    def _place(self, name: str, tensor: Tensor) -> int:
        at = self.sizes[name]
        getattr(self, name).append(tensor.detach().reshape(-1))
        self.sizes[name] += tensor.numel()
        return at

    def _fused_add(self, node: fx.Node, conv: fx.Node) -> None:
        add = self.module(node)
        ratios, zero_points = (add.a_ratio, add.b_ratio), (add.a_zero_point, add.b_zero_point)
        mine = node.args.index(conv)
        residual = node.args[1 - mine]
        tail = [self.index[residual], zero_points[1 - mine], self.number(ratios[1 - mine]), self.number(ratios[mine])]
        _write_weighted(self, node, conv, [*tail, add.y_zero_point, add.lo, add.hi])


def _concatenated(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=dtype)


def _flat(values: Any) -> list[Any]:
    return [leaf for value in values for leaf in (_flat(value) if isinstance(value, (list, tuple)) else [value])]


def _fused_convolutions(part: list[fx.Node], outputs: set[fx.Node], model: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """For each add that can happen in the epilogue of a convolution or linear: the latter, which nothing else reads."""
    fused: dict[fx.Node, fx.Node] = {}
    inside = set(part)
    for node in part:
        if not isinstance(_module(node, model), int8.Add) or node.args[0] is node.args[1]:
            continue
        for operand in node.args:
            alone = operand in inside and operand not in outputs and len(operand.users) == 1
            if alone and isinstance(_module(operand, model), (int8.Conv2d, int8.Linear)):
                fused[node] = operand
                break
    return fused


# How each module or call is written. A writer takes the program and the node.


def _triple(values: list[int] | tuple[int, ...], missing: int) -> list[int]:
    return [missing] * (3 - len(values)) + list(values)


def _write_quantize(program: _ProgramWriter, node: fx.Node) -> None:
    q = program.module(node)
    program.step(node, _QUANTIZE, program.values(node), program.number(q.scale), q.zero_point, q.qmin, q.qmax)


def _write_dequantize(program: _ProgramWriter, node: fx.Node) -> None:
    q = program.module(node)
    program.step(node, _DEQUANTIZE, program.values(node), program.number(q.scale), q.zero_point)


def _write_weighted(program: _ProgramWriter, node: fx.Node, conv: fx.Node, residual: list[int]) -> None:
    """The step of `conv` (or linear), its result standing for `node`."""
    m = program.module(conv)
    x = program.values(conv)
    if isinstance(m, int8.Linear):
        program.step(node, _LINEAR, x, m.weight.shape, program.weighted(m), residual)
        return
    out, per_group, *kernel = m.weight.shape
    shape = [len(kernel), out, per_group * m.groups, m.groups, _triple(kernel, 1), _triple(m.stride, 1)]
    shape += [_triple(m.padding, 0), _triple(m.dilation, 1)]
    program.step(node, _CONV, x, shape, program.weighted(m), residual)


def _write_conv(program: _ProgramWriter, node: fx.Node) -> None:
    _write_weighted(program, node, node, [-1])


def _write_batch_norm(program: _ProgramWriter, node: fx.Node) -> None:
    m = program.module(node)
    program.step(node, _NORM, program.values(node), m.weight.shape[0], program.weighted(m), -1)


def _write_add(program: _ProgramWriter, node: fx.Node) -> None:
    m = program.module(node)
    a, b = (program.index[n] for n in node.args)
    ratios = (m.a_zero_point, program.number(m.a_ratio), m.b_zero_point, program.number(m.b_ratio))
    program.step(node, _ADD, a, b, ratios, m.y_zero_point, m.lo, m.hi)


def _write_max_pool(program: _ProgramWriter, node: fx.Node) -> None:
    m = program.module(node)
    windows = [_triple(m.kernel_size, 1), _triple(m.stride, 1), _triple(m.padding, 0), _triple(m.dilation, 1)]
    program.step(node, _MAX_POOL, program.values(node), len(m.kernel_size), windows, m.ceil_mode)


def _average_tail(program: _ProgramWriter, m: int8._Pool) -> list[int]:
    x, y = (program.number(m.x_scale), m.x_zero_point), (program.number(m.y_scale), m.y_zero_point)
    return [*x, *y, m.lo, m.hi]


def _write_avg_pool(program: _ProgramWriter, node: fx.Node) -> None:
    m = program.module(node)
    windows = [_triple(m.kernel_size, 1), _triple(m.stride, 1), _triple(m.padding, 0), m.ceil_mode, m.count_include_pad]
    tail = [*_average_tail(program, m), m.divisor_override]
    program.step(node, _AVG_POOL, program.values(node), len(m.kernel_size), windows, tail)


def _write_adaptive(program: _ProgramWriter, node: fx.Node, pool: int8.AdaptiveAvgPool | None = None) -> None:
    m = pool or program.module(node)
    size = _triple(m.output_size, 1)
    program.step(node, _ADAPTIVE, program.values(node), len(m.output_size), size, _average_tail(program, m), 0)


def _write_mean(program: _ProgramWriter, node: fx.Node) -> None:
    _write_adaptive(program, node, program.module(node)[0])
    program.step(node, FLATTEN, program.index[node], 1, -1)


def _write_clamp(program: _ProgramWriter, node: fx.Node) -> None:
    m = program.module(node)
    codes = torch.arange(256).clamp(m.lo, m.hi).to(torch.uint8)
    program.step(node, _TABLE, program.values(node), program.table(codes))


def _write_cat(program: _ProgramWriter, node: fx.Node, dim: int) -> None:
    tensors = [program.index[n] for n in node.args[0]]
    program.step(node, _CAT, dim, len(tensors), tensors)


_MODULES: dict[type[nn.Module], Writer] = {
    int8.Quantize: _write_quantize,
    int8.Dequantize: _write_dequantize,
    int8.Conv1d: _write_conv,
    int8.Conv2d: _write_conv,
    int8.Conv3d: _write_conv,
    int8.Linear: _write_conv,
    int8.BatchNorm: _write_batch_norm,
    int8.Add: _write_add,
    int8.MaxPool: _write_max_pool,
    int8.AvgPool: _write_avg_pool,
    int8.AdaptiveAvgPool: _write_adaptive,
    int8.Clamp: _write_clamp,
}


def _writer(node: fx.Node, model: fx.GraphModule) -> Writer | None:
    """How to write the node; None where no step computes it. Dimension 0 is the batch, which no step touches."""
    module = _module(node, model)
    if type(module) in _MODULES:
        return _MODULES[type(module)]
    if isinstance(module, int8.Cat):
        return _cat_writer(module.dim)
    if isinstance(module, nn.Sequential) and [type(m) for m in module] == [int8.AdaptiveAvgPool, nn.Flatten]:
        return _write_mean
    if getattr(node.target, "overloadpacket", node.target) is torch.ops.aten.cat and not node.kwargs:
        return _cat_writer(node.args[1] if len(node.args) > 1 else 0)
    return move_writer(node, module)


def _cat_writer(dim: int) -> Writer | None:
    return None if dim == 0 else lambda program, node: _write_cat(program, node, dim)


def _module(node: Any, model: fx.GraphModule) -> nn.Module | None:
    return model.get_submodule(node.target) if node.op == "call_module" else None
