"""Random networks of everything the integer path knows, with float parts between: evaluation and INT8, bit for bit.

Before there are ranges the prepared model computes what the model does, also where that overwrites values.
"""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octet
from helpers import equal_bits, train


class Random(nn.Module):
    """Draws `length` operations; each reads values drawn from those computed so far. All values have one shape."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        channels = draw.choice([1, 2, 4])
        self.recipe = octet.Recipe(overrides={})
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, int, int, int]] = []
        for i in range(length):
            kind = draw.choice(KINDS)
            first, second = draw.randrange(max(0, i - 2), i + 1), draw.randrange(0, i + 1)
            self.plan.append((kind, first, second, len(self.layers)))
            if kind.startswith("float "):
                self.recipe.overrides[f"layers.{len(self.layers)}"] = octet.Float
            self.layers.extend(MODULES.get(kind, lambda c: [])(channels))
        self.shared = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, first, second, layer in self.plan:
            a, b = values[first], values[second]
            if kind in MODULES:
                for module in list(self.layers)[layer : layer + len(MODULES[kind](1))]:
                    a = module(a)
                values.append(a)
            elif kind in ("shared", "norm"):
                values.append(getattr(self, kind)(a))
            else:
                values.append(FUNCTIONS[kind](a, b))
        return self.head(values[-1].mean((2, 3))), values[len(values) // 2]


MODULES = {
    "conv": lambda c: [nn.Conv2d(c, c, 3, padding=1)],
    "conv relu": lambda c: [nn.Conv2d(c, c, 3, padding=1), nn.ReLU()],
    "conv bn": lambda c: [nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)],
    "conv bn relu6": lambda c: [nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c), nn.ReLU6()],
    "bn relu": lambda c: [nn.BatchNorm2d(c), nn.ReLU()],
    "average": lambda c: [nn.AvgPool2d(3, 1, 1)],
    "max": lambda c: [nn.MaxPool2d(3, 1, 1)],
    "relu6": lambda c: [nn.ReLU6()],
    "relu in place": lambda c: [nn.ReLU(inplace=True)],
    "max, ceil mode": lambda c: [nn.MaxPool2d(2, 2, ceil_mode=True), nn.Upsample((5, 5))],
    "average, ceil mode": lambda c: [nn.AvgPool2d(2, 2, ceil_mode=True), nn.Upsample((5, 5))],
    "max of all": lambda c: [nn.MaxPool2d(7, 4, ceil_mode=True), nn.Upsample((5, 5))],
    "leaky": lambda c: [nn.LeakyReLU(0.3)],
    "float conv": lambda c: [nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(0.3)],
    "float norm": lambda c: [nn.BatchNorm2d(c)],
    "float max": lambda c: [nn.MaxPool2d(3, 1, 1)],
    "transposed": lambda c: [nn.ConvTranspose2d(c, c, 3, padding=1), nn.LeakyReLU(0.3)],
}
FUNCTIONS = {
    "add": lambda a, b: a + b,
    "sub relu": lambda a, b: F.relu(a - b),
    "cat": lambda a, b: torch.cat([a, b], 1)[:, ::2],
    "permute": lambda a, b: a.permute(0, 1, 3, 2).reshape(a.shape),
    "chunk": lambda a, b: torch.cat(a.chunk(2, 1)[::-1], 1),
    "pad": lambda a, b: F.pad(a, (1, 1, 0, 0))[..., 1:-1],
    "relu": lambda a, b: F.relu(a),
    "mul": lambda a, b: a * b,
    "twice": lambda a, b: a + a,
}
KINDS = [*MODULES, *FUNCTIONS, "shared", "shared", "norm", "norm", "add", "conv bn"]


@pytest.mark.parametrize("seed", range(16))
def test_random_networks_convert_bit_for_bit(seed):
    model = Random(seed, length=4 + seed)
    shape = (model.head.in_features, 5, 5)
    x = torch.randn(2, *shape)
    qat = octet.prepare(model, (x,), model.recipe).eval()
    torch.testing.assert_close(qat(x), model.eval()(x.clone()), rtol=1e-4, atol=1e-4)
    train(qat, lambda batch: ((torch.randn(batch, *shape),), {}), steps=3)
    int8 = octet.convert(qat.eval())
    for batch in (1, 6):
        x = torch.randn(batch, *shape)
        result = octet.verify(qat, int8, (x,))
        assert result, f"{result}\n{octet.report(qat)}"
        with torch.no_grad():
            assert equal_bits(qat(x), int8(x))
