"""Runs that stop and go on, and runs that diverge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octet
from helpers import equal_bits
from models import build
from octet.errors import ConvertError

STEPS = 10


class Run:
    """A model in training with everything a checkpoint holds."""

    def __init__(self, low_memory: bool = False) -> None:
        model, inputs = build("MobileNetV2")
        torch.manual_seed(1)
        (x,), _ = inputs(4)
        self.qat = octet.prepare(model, (x,), low_memory=low_memory)
        self.optimizer = torch.optim.SGD(self.qat.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.05, total_steps=STEPS)
        self.schedule = octet.Schedule(self.qat, STEPS, fake_quantize=0.2, freeze_bn=0.6, freeze_ranges=0.8)
        self.shape = x.shape[1:]

    def parts(self) -> dict[str, Any]:
        return {"qat": self.qat, "optimizer": self.optimizer, "rate": self.rate, "schedule": self.schedule}

    def save(self, path: Any) -> None:
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, path)

    def load(self, path: Any) -> None:
        state = torch.load(path)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(4, *self.shape, generator=generator), torch.randint(0, 3, (4,), generator=generator)

    def train(self, begin: int, end: int) -> None:
        self.qat.train()
        for step in range(begin, end):
            x, labels = self.batch(step)
            torch.manual_seed(step)  # for dropout
            loss = F.cross_entropy(self.qat(x).flatten(1), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.rate.step()
            self.schedule.step()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 7, 9])  # in float, on grids, batch norm frozen, ranges frozen
def test_a_resumed_run_gives_the_same_bits(tmp_path, stop, low_memory):
    whole = Run(low_memory)
    whole.train(0, STEPS)
    first = Run(low_memory)
    first.train(0, stop)
    first.save(tmp_path / "checkpoint")
    second = Run(low_memory)
    second.load(tmp_path / "checkpoint")
    second.train(stop, STEPS)
    assert equal_bits(whole.qat.state_dict(), second.qat.state_dict())
    assert equal_bits(whole.optimizer.state_dict(), second.optimizer.state_dict())
    x, _ = whole.batch(99)
    with torch.no_grad():
        assert torch.equal(octet.convert(whole.qat)(x), octet.convert(second.qat)(x))


# A run that diverges: NaN reaches the loss, the optimizer writes it into every weight.


def diverged() -> tuple[octet.QATModel, list[float]]:
    model, inputs = build("ResNet")
    qat = octet.prepare(model, inputs(2)[0])
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    qat.train()
    losses = []
    for step in range(5):
        (x,), _ = inputs(4)
        loss = qat(x).square().mean() * (torch.nan if step == 2 else 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return qat, losses


def test_a_diverging_run_shows_in_the_loss_and_leaves_the_ranges():
    qat, losses = diverged()
    assert [value == value for value in losses] == [True, True, False, False, False]
    # The input's grid saw good values throughout; the others two forwards with NaN.
    for name, grid in qat.named_modules():
        if isinstance(grid, octet.nn.FakeQuantize):
            assert torch.stack([grid.min, grid.max, grid.scale]).isfinite().all()
            assert int(grid.nonfinite) == (0 if name == "octet.x" else 2), name


def test_a_diverged_model_is_named_when_converting():
    qat, _ = diverged()
    with pytest.raises(ConvertError, match=r"convert: stem\.0: conv\.weight must be finite \(got NaN or inf\)"):
        octet.convert(qat)


def test_a_diverged_model_recovers_from_a_checkpoint_of_its_weights():
    """What diverged is the weights: with good ones put back, ranges and grids go on from where they were."""
    model, inputs = build("ResNet")
    qat, _ = diverged()
    ranges = {key: value.clone() for key, value in qat.state_dict().items() if key.endswith(".min")}
    own = {key: value for key, value in qat.state_dict().items() if key.startswith("octet.")}
    qat.load_state_dict({**model.state_dict(), **own})
    assert all(torch.equal(qat.state_dict()[key], value) for key, value in ranges.items())
    ((x,), _) = inputs(4)
    assert qat.train()(x).isfinite().all()
    assert octet.verify(qat, octet.convert(qat), (x,))


def test_infinite_activations_leave_the_ranges_and_are_counted():
    qat = octet.prepare(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), (torch.randn(2, 1, 2, 2),)).train()
    qat(torch.ones(1, 1, 2, 2))
    grid = qat.get_submodule("octet.0.output")
    before = grid.max.clone()
    with torch.no_grad():
        qat.get_submodule("0").bias.fill_(torch.inf)
    qat(torch.ones(1, 1, 2, 2))
    assert torch.equal(grid.max, before) and int(grid.nonfinite) == 1
