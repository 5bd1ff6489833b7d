"""Is the INT8 model the QAT model, layer by layer? `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from . import ops
from .convert import Int8Model
from .nn import Block, FakeQuantize
from .prepare import QATModel


@dataclass(frozen=True)
class LayerComparison:
    """One layer: of `count` values `different` are not equal, by at most `largest` (steps of the grid, if on codes).

    Where the shapes differ, all values do, by inf.
    """

    name: str
    count: int
    different: int
    largest: float
    codes: bool
    expected_shape: tuple[int, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        if self.shape != self.expected_shape:
            return f"{self.name}: the shape must be {self.expected_shape} (got {self.shape})"
        unit = "steps" if self.codes else "in float"
        return f"{self.name}: {self.different} of {self.count} values differ, by up to {self.largest:g} {unit}"


@dataclass(frozen=True)
class Verification:
    """The result of `verify`: true if every layer and the outputs are equal."""

    layers: list[LayerComparison]

    @property
    def first(self) -> LayerComparison | None:
        """The first layer that differs. Later ones may differ only because of it."""
        return next((layer for layer in self.layers if layer.different), None)

    def __bool__(self) -> bool:
        return self.first is None

    def __str__(self) -> str:
        if self.first is None:
            return f"equal in every bit: {len(self.layers)} layers"
        return f"first difference in {self.first}"


def verify(
    qat: QATModel, int8_model: Int8Model, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Verification:
    """Runs both models on one input, `qat` in evaluation mode, and compares the result of every layer they share.

    Args:
        qat: the prepared model, whose training flags come back as they were.
        int8_model: what `convert` made of it, with float inputs.
        args, kwargs: the input.

    Raises:
        TypeError: not these two kinds of model, or args that are no tuple.
        ValueError: models with no layer in common.
        Exception: what the forward of the INT8 model raises, unless a layer before it differs.
    """
    if not isinstance(qat, QATModel) or not isinstance(int8_model, Int8Model):
        kinds = (type(qat).__name__, type(int8_model).__name__)
        raise TypeError(f"verify: the models must come from octet.prepare and octet.convert (got {kinds})")
    if not isinstance(args, tuple):
        raise TypeError(f"verify: args must be a tuple of inputs (got {type(args).__name__})")
    flags = {module: module.training for module in qat.modules()}
    try:
        qat.eval()
        expected = _Recorder(qat).record(args, kwargs or {})
    finally:
        for module, flag in flags.items():
            module.training = flag
    recorder, failure = _Recorder(int8_model), None
    actual = recorder.values
    try:
        recorder.record(args, kwargs or {})
        with torch.no_grad():  # the outputs as everybody gets them, should the model run differently than node by node
            actual |= _outputs(int8_model(*args, **(kwargs or {})))
    except Exception as error:  # maybe only because of an earlier layer
        failure = error
    layers = [_compare(name, value, actual[name]) for name, value in expected.items() if name in actual]
    if failure is not None and not any(layer.different for layer in layers):
        raise failure
    if not layers:
        raise ValueError("verify: the models must have layers in common (got none)")
    return Verification(layers)


@dataclass
class _Value:
    tensor: Tensor
    grid: FakeQuantize | None


class _Recorder(Interpreter):
    """Runs a graph and keeps the tensors its nodes gave, by their octet name."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, _Value] = {}
        self.grids: dict[Node, FakeQuantize] = {}

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, _Value]:
        names = [node.target for node in self.graph.nodes if node.op == "placeholder"]
        rest = [kwargs[name] for name in names[len(args) :] if name in kwargs]
        with torch.no_grad():
            self.run(*args, *rest)
        return self.values

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        module = self.fetch_attr(n.target) if n.op == "call_module" else None
        grid = self._grid(n, module)  # also of a tuple, whose parts are read next
        if n.op in ("call_module", "call_function") and isinstance(result, Tensor):
            self.values[n.meta["octet_name"]] = _Value(result, grid)
        elif n.op == "output":
            self.values |= _outputs(result)
        return result

    def _grid(self, n: Node, module: nn.Module | None) -> FakeQuantize | None:
        """The grid of the result if it is on one: a layer without its own leaves values on that of what it reads."""
        grid = _grid_of(module) or next((self.grids[x] for x in n.all_input_nodes if x in self.grids), None)
        if grid is not None:
            self.grids[n] = grid
        return grid


def _outputs(result: Any) -> dict[str, _Value]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return {f"output {i}": _Value(value, None) for i, value in enumerate(leaves) if isinstance(value, Tensor)}


def _grid_of(module: nn.Module | None) -> FakeQuantize | None:
    if isinstance(module, Block):
        return module.output
    return module if isinstance(module, FakeQuantize) else None


def _compare(name: str, expected: _Value, actual: _Value) -> LayerComparison:
    want, got = expected.tensor, actual.tensor
    shapes = tuple(want.shape), tuple(got.shape)
    codes = got.dtype == torch.uint8 and want.is_floating_point()
    if want.shape != got.shape:
        return LayerComparison(name, got.numel(), max(1, got.numel()), torch.inf, codes, *shapes)
    if codes and expected.grid is not None:
        want = ops.quantize_per_tensor(want, *expected.grid.grid(), torch.uint8)
    difference = (want.double() - got.double()).abs()
    same = (want == got) | (want.isnan() & got.isnan()) if want.is_floating_point() else want == got
    largest = float(difference.nan_to_num(nan=torch.inf).masked_fill(same, 0).max()) if got.numel() else 0.0
    return LayerComparison(name, got.numel(), int((~same).sum()), largest, codes, *shapes)
