"""octet::nn in C++ and octet.nn in Python: from the same state the same bits out, and the same state after."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.jit._pickle import restore_type_tag

from octet import Spec
from octet.nn import (
    AdaptiveAvgPool2d,
    Add,
    AddReLU,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvBn2d,
    ConvBnReLU2d,
    ConvReLU2d,
    FakeQuantize,
    Linear,
    LinearBnReLU1d,
    LinearReLU,
    bind,
    int8,
)
from octet.nn.fake_quantize import commit

ROOT = Path(__file__).parents[2]
IMAGE, ROWS = (5, 4, 9, 8), (6, 9)


class Residual(nn.Module):
    """In C++ a module of one's own that `prepare` wires, the grid of the input in the first block that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.input = FakeQuantize()
        self.first = ConvBnReLU2d(4, 4, 3, padding=1, bias=False, input=self.input)
        self.second = ConvBn2d(4, 4, 3, padding=1, input=self.first.output)
        self.add = AddReLU(self.second.output, self.input)
        bind(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        return self.add(self.second(self.first(x)), x)


def observed_by(observer: str):
    spec = Spec(observer=observer, percentile=95.0)
    return lambda a, b: ConvBn2d(4, 6, 3, input=a, activations=spec)


# As in tests/cpp/module_runner.cpp.
MODULES = {
    "Conv2d": (lambda a, b: Conv2d(4, 6, 3, stride=2, input=a), IMAGE),
    "ConvReLU2d": (lambda a, b: ConvReLU2d(4, 8, 3, groups=4, input=a), IMAGE),
    "ConvBn2d": (lambda a, b: ConvBn2d(4, 6, 3, dilation=2, input=a), IMAGE),
    "ConvBnReLU2d": (lambda a, b: ConvBnReLU2d(4, 6, 3, padding=1, bias=False, input=a), IMAGE),
    "Linear": (lambda a, b: Linear(9, 5, input=a), ROWS),
    "LinearReLU": (lambda a, b: LinearReLU(9, 5, input=a), ROWS),
    "LinearBnReLU1d": (lambda a, b: LinearBnReLU1d(9, 5, input=a), ROWS),
    "BatchNorm2d": (lambda a, b: BatchNorm2d(4, input=a), IMAGE),
    "AvgPool2d": (lambda a, b: AvgPool2d(2, input=a), IMAGE),
    "AdaptiveAvgPool2d": (lambda a, b: AdaptiveAvgPool2d((2, 2), input=a), IMAGE),
    "Add": (lambda a, b: Add(a, b), IMAGE),
    "AddReLU": (lambda a, b: AddReLU(a, b), IMAGE),
    "percentile": (observed_by("percentile"), IMAGE),
    "mse": (observed_by("mse"), IMAGE),
    "entropy": (observed_by("entropy"), IMAGE),
    "Residual": (lambda a, b: Residual(), IMAGE),
}


class Root(nn.Module):
    """The operands' quantizers and one block, as the C++ program has them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.b = FakeQuantize(), FakeQuantize()
        self.block = MODULES[name][0](self.a, self.b)
        self.bound = [self.a, self.b, self.block.output] if name.startswith("Add") else []
        for grid in self.bound:
            grid.shared = True

    def forward(self, *operands: Tensor) -> Tensor:
        y = self.block(*(grid(x) for grid, x in zip((self.a, self.b), operands, strict=False)))
        if self.bound and self.training:
            commit(self.bound, [0, 0, 0])
        return y


def runner() -> Path:
    found = [path for path in (ROOT / "build").rglob("module_runner") if path.is_file() and os.access(path, os.X_OK)]
    assert found, "module_runner is not built: configure with -DOCTET_BUILD_TESTS=ON, as `make test` does"
    return max(found, key=lambda path: path.stat().st_mtime)


def run_in_cpp(name: str, state: dict[str, Tensor], batches: list[list[Tensor]], folder: Path) -> dict[str, Tensor]:
    given, results = folder / "given.pt", folder / "results.pt"
    torch.save({"state": dict(state), "batches": batches}, given)
    subprocess.run([runner(), name, given, results], check=True)
    with torch.serialization.safe_globals([restore_type_tag]):  # C++ notes the type of the dict
        return torch.load(results)


def in_cpp(key: str) -> str:
    return key.replace("block.input.", "block.first.input.")


def codes(root: Root, operands: list[Tensor]) -> Tensor:
    """What the INT8 module of the block gives."""
    grids = (root.a, root.b)[: len(operands)]
    numbers = [(float(g.scale), int(g.zero_point), g.qmin, g.qmax) for g in grids]
    return root.block.to_int8()(*(int8.Quantize(*grid)(x) for grid, x in zip(numbers, operands, strict=True)))


@pytest.mark.parametrize("name", MODULES)
def test_same_state_same_bits(name: str, tmp_path: Path) -> None:
    root = Root(name)
    operands = 2 if root.bound else 1
    batches = [[torch.randn(MODULES[name][1]) * (i + 1) for i in range(operands)] for _ in range(4)]
    before = {in_cpp(key): value.clone() for key, value in root.state_dict().items()}
    actual = run_in_cpp(name, before, batches, tmp_path)

    expected = {}
    for i, batch in enumerate(batches):
        root.train(i + 1 < len(batches))
        expected[f"forward{i}"] = root(*batch).detach()
    expected["int8"] = expected["forward3"] if name == "Residual" else codes(root, batches[-1])
    expected |= {f"state.{in_cpp(key)}": value for key, value in root.state_dict().items()}

    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        assert torch.equal(actual[key], value), key
    if name != "Residual":
        scale, zero_point = root.block.output.scale, root.block.output.zero_point
        assert torch.equal(expected["forward3"], scale * (expected["int8"].int() - zero_point).float())
