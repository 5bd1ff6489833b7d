"""From a QAT model to the INT8 model with the same bits: `convert`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from .errors import StateDictError
from .network import LoweredGraph
from .nn import Block, FakeQuantize, MaxPool, ToFloat, int8
from .nn.block import Activation
from .patterns import DROPOUTS, activation_of, is_getitem, is_zero_pad, keeps_grid, tied_operands
from .prepare import ROOT, QATModel, Row, check_state
from .readiness import check_ready


class Int8Model(LoweredGraph):
    """What `convert` returns: a graph of `octet.nn.int8` modules on uint8 codes, float islands between them.

    An ordinary module: save it, script it, deepcopy it. It does not train.

    Attributes:
        input_grids, output_grids: (scale, zero point) by position for inputs and outputs that are codes.
    """

    @property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.about["rows"]]

    @property
    def input_grids(self) -> dict[str, tuple[float, int]]:
        return {name: tuple(grid) for name, grid in self.about["inputs"].items()}

    @property
    def output_grids(self) -> dict[str, tuple[float, int]]:
        return {name: tuple(grid) for name, grid in self.about["outputs"].items()}

    @property
    def about(self) -> dict[str, Any]:
        return self.get_submodule("_about").data

    def get_extra_state(self) -> dict[str, Any]:
        """What the layers know besides tensors (zero points, bounds, strides) and the grids of inputs and outputs."""
        return {"layers": {name: _numbers(module) for name, module in self._layers().items()}, "about": self.about}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict of an INT8 model of the same layers.

        Raises:
            StateDictError: with strict, keys, shapes or layers that do not fit; nothing was changed.
        """
        if strict:
            check_state(self, state_dict)
            self._check_layers(state_dict["_extra_state"]["layers"])
        return super().load_state_dict(state_dict, strict, assign)

    def _check_layers(self, state: dict[str, dict[str, Any]]) -> None:
        other = sorted(name for name in self._layers().keys() | state.keys() if not self._fits(name, state))
        if other:
            raise StateDictError(
                f"load_state_dict: {other[0]}: the state must have the same kind of layer there (got another model's)"
            )

    def set_extra_state(self, state: dict[str, Any]) -> None:
        layers = self._layers()
        self._check_layers(state["layers"])
        for name, numbers in state["layers"].items():
            layers[name].__dict__.update(copy.deepcopy(numbers))
        self.get_submodule("_about").data = copy.deepcopy(state["about"])

    def _layers(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_modules() if type(module).__module__ == int8.__name__}

    def _fits(self, name: str, layers: dict[str, dict[str, Any]]) -> bool:
        own = self._layers().get(name)
        return own is not None and name in layers and _numbers(own).keys() == layers[name].keys()


def _numbers(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name != "training" and not name.startswith("_")}


class About(nn.Module):
    """What a model says about itself; plain data."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.data = data


def convert(qat: QATModel, inputs: str = "float", outputs: str = "float") -> Int8Model:
    """Returns the INT8 model that computes what `qat` computes in evaluation mode, bit for bit. `qat` is left alone.

    Args:
        qat: a prepared model that was trained or calibrated.
        inputs: "float": float inputs are quantized inside. "codes": inputs that only integer layers read are taken as
            uint8 codes on `input_grids`.
        outputs: "float": dequantized. "codes": outputs that are on a grid are given as uint8 codes on `output_grids`.

    Raises:
        ConvertError: names the grid that has no range, was switched off or is stale, or the layer whose parameters are
            not finite.
        TypeError: not a prepared model.
    """
    if not isinstance(qat, QATModel):
        raise TypeError(f"convert: the model must come from octet.prepare (got {type(qat).__name__})")
    for name, choice in {"inputs": inputs, "outputs": outputs}.items():
        if choice not in ("float", "codes"):
            raise ValueError(f"convert: {name} must be 'float' or 'codes' (got {choice!r})")
    qat.get_submodule(ROOT)._follow(qat)
    check_ready(qat)
    # Inference tensors do not tell when they change: weights made of them would be packed again in every call.
    with torch.inference_mode(False), torch.no_grad():
        return _Converter(qat, inputs == "codes", outputs == "codes").run()


class _Converter:
    def __init__(self, qat: QATModel, codes_in: bool, codes_out: bool) -> None:
        self.qat, self.codes_in, self.codes_out = qat, codes_in, codes_out
        self.modules = dict(qat.named_modules())
        self.root = nn.Module()
        self.graph = Graph()
        self.value: dict[Node, Node] = {}  # old node -> the new one, codes where the old one is on a grid
        self.floats: dict[Node, Node] = {}  # new node with codes -> its dequantized value
        self.grids: dict[Node, FakeQuantize] = {}  # old node -> its grid
        self.made: dict[tuple, str] = {}  # one INT8 module per original one
        self.about: dict[str, Any] = {"rows": [asdict(row) for row in qat.rows], "inputs": {}, "outputs": {}}

    def run(self) -> Int8Model:
        for node in self.qat.graph.nodes:
            if node.op == "output":
                self._output(node)
            elif node.op != "call_module" or node.target != ROOT:
                self._convert(node)
        self.root.add_module("_about", About(self.about))
        self.root.unreached = list(self.qat.unreached)
        model = Int8Model(self.root, self.graph).eval()
        model.graph.eliminate_dead_code()
        model.graph.lint()
        model.recompile()
        model.lowered()  # now rather than in the first call
        return model

    def _convert(self, node: Node) -> None:
        module = self.modules[node.target] if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            self._quantize(node, module)
        elif isinstance(module, Block):
            self._emit(node, module.output, lambda: module.to_int8())
        elif isinstance(module, (*DROPOUTS, ToFloat)) or type(module) is nn.Identity:
            self._forward(node)
        elif (grid := self._common_grid(node)) is not None:
            self._tied(node, module, grid)
        else:
            self._float(node, module)

    def _forward(self, node: Node) -> None:
        source = node.args[0]
        self.value[node] = self.value[source]
        if source in self.grids:
            self.grids[node] = self.grids[source]

    def _common_grid(self, node: Node) -> FakeQuantize | None:
        """The grid of all operands, where they are on one and the node keeps it."""
        grids = {self.grids.get(operand) for operand in tied_operands(node)}
        keeps = (
            is_getitem(node) or keeps_grid(node, self.modules) or activation_of(node, self.modules) is Activation.RELU
        )
        return grids.pop() if keeps and len(grids) == 1 else None

    # One kind of node each.

    def _quantize(self, node: Node, grid: FakeQuantize) -> None:
        source = node.args[0]
        self.grids[node] = grid
        if self.codes_in and source.op == "placeholder" and len(source.users) == 1:
            self.value[node] = self.value[source]
            self.about["inputs"][source.target] = [float(grid.scale), int(grid.zero_point)]
            return
        numbers = (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax)
        self.value[node] = self._module(node, int8.Quantize(*numbers), (self._as_float(source),))

    def _emit(self, node: Node, grid: FakeQuantize, make: Any) -> None:
        key = (node.target,)
        name = node.meta["octet_name"] if key not in self.made else self.made[key]
        if key not in self.made:
            self.made[key] = name
            self._add(name, make())
        args = tuple(self.value[arg] for arg in node.args)
        self.value[node] = self._node(node, "call_module", name, args)
        self.grids[node] = grid

    def _tied(self, node: Node, module: nn.Module | None, grid: FakeQuantize) -> None:
        """The same thing on codes; what looks at values rather than moves them becomes its INT8 form."""
        args = torch.fx.node.map_arg(node.args, lambda n: self.value[n])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: self.value[n])
        replacement = self._tied_module(node, module, grid)
        if replacement is not None:
            self.value[node] = self._module(node, replacement, (args[0],))
        elif module is not None:
            self.value[node] = self._module(node, copy.deepcopy(module), args)
        else:
            self.value[node] = self._node(node, node.op, node.target, args, kwargs)
        self.grids[node] = grid

    def _tied_module(self, node: Node, module: nn.Module | None, grid: FakeQuantize) -> nn.Module | None:
        """The INT8 module of a node that compares values or brings its own zeros; None for one that only moves them."""
        if isinstance(module, MaxPool):
            return module.to_int8()
        if is_zero_pad(node, module):
            return int8.Pad(list(module.padding if module else node.args[1]), int(grid.zero_point))
        if activation_of(node, self.modules) is Activation.RELU:
            return int8.Clamp(max(grid.qmin, int(grid.zero_point)), grid.qmax)
        return None

    def _float(self, node: Node, module: nn.Module | None) -> None:
        args = torch.fx.node.map_arg(node.args, lambda n: self._operand(node, n))
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: self._operand(node, n))
        if module is not None:
            name = self.made.setdefault((node.target,), node.meta["octet_name"])
            if name == node.meta["octet_name"]:
                self._add(name, copy.deepcopy(module).eval())
            self.value[node] = self._node(node, "call_module", name, args, kwargs)
            return
        if node.op == "get_attr":
            self._add_tensor(node.target)
        self.value[node] = self._node(node, node.op, node.target, args, kwargs)

    def _operand(self, node: Node, source: Node) -> Node:
        """Sizes are those of the codes too."""
        return self.value[source] if node.op == "call_method" else self._as_float(source)

    def _output(self, node: Node) -> None:
        def value(source: Node) -> Node:
            if not (self.codes_out and source in self.grids):
                return self._as_float(source)
            grid = self.grids[source]
            self.about["outputs"][source.meta["octet_name"]] = [float(grid.scale), int(grid.zero_point)]
            return self.value[source]

        self.graph.output(torch.fx.node.map_arg(node.args[0], value))

    def _as_float(self, source: Node) -> Node:
        codes = self.value[source]
        if source not in self.grids:
            return codes
        if codes not in self.floats:
            grid = self.grids[source]
            name = f"{source.meta['octet_name'].removesuffix('_quantize').removesuffix('_to_float')}_dequantize"
            module = int8.Dequantize(float(grid.scale), int(grid.zero_point))
            self._add(name, module)
            self.floats[codes] = self.graph.call_module(name, (codes,))
            self.floats[codes].meta = {"octet_name": name}
        return self.floats[codes]

    # Making things.

    def _module(self, node: Node, module: nn.Module, args: tuple) -> Node:
        name = node.meta["octet_name"]
        self._add(name, module)
        return self._node(node, "call_module", name, args)

    def _node(self, like: Node, op: str, target: Any, args: tuple, kwargs: dict | None = None) -> Node:
        node = self.graph.create_node(op, target, args, kwargs or {}, name=like.name, type_expr=like.type)
        node.meta = {key: like.meta[key] for key in ("octet_name", "stack_trace") if key in like.meta}
        return node

    def _add(self, name: str, module: nn.Module) -> None:
        owner = self._container(name)
        owner.add_module(name.rpartition(".")[2], module)

    def _add_tensor(self, name: str) -> None:
        holder, _, leaf = name.rpartition(".")
        tensor = getattr(self.qat.get_submodule(holder), leaf).detach().clone()
        self._container(name).register_buffer(leaf, tensor)

    def _container(self, name: str) -> nn.Module:
        owner = self.root
        for part in name.split(".")[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        return owner
