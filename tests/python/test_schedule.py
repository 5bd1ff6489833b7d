"""When a model observes, fake-quantizes and freezes; calibration."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import octet
from helpers import equal_bits, train, trained
from models import build
from octet.errors import RangeError


def prepared(name: str = "SharedConv"):
    model, inputs = build(name)
    return octet.prepare(model, inputs(2)[0]), inputs


def modes(qat: nn.Module) -> tuple[bool, bool, bool]:
    """Whether all grids observe, all fake-quantize, all batch norms are frozen."""
    grids = [m for m in qat.modules() if isinstance(m, octet.nn.FakeQuantize)]
    norms = [m for m in qat.modules() if isinstance(m, octet.nn.NormBlock)]
    observing, enabled, frozen = ({bool(v) for v in values} for values in (
        (g.observing for g in grids), (g.enabled for g in grids), (n.freeze_bn for n in norms)
    ))  # fmt: skip
    assert len(observing) == len(enabled) == len(frozen) == 1
    return observing.pop(), enabled.pop(), frozen.pop()


def test_the_default_schedule():
    qat, _ = prepared()
    schedule = octet.Schedule(qat, 10)
    seen = [modes(qat)]
    for _ in range(10):
        schedule.step()
        seen.append(modes(qat))
    assert seen == [(True, True, False)] * 6 + [(True, True, True)] * 2 + [(False, True, True)] * 3


def test_fake_quantization_may_begin_later():
    qat, inputs = prepared()
    schedule = octet.Schedule(qat, 4, fake_quantize=0.5, freeze_bn=2, freeze_ranges=2)
    assert modes(qat) == (True, False, False)
    for _ in range(4):
        train(qat, inputs, steps=1)
        schedule.step()
    assert modes(qat) == (True, True, False)
    octet.convert(qat)


def test_a_schedule_continues_from_its_state():
    qat, _ = prepared()
    schedule = octet.Schedule(qat, 10)
    for _ in range(7):
        schedule.step()
    other, _ = prepared()
    again = octet.Schedule(other, 10)
    again.load_state_dict(schedule.state_dict())
    assert modes(other) == (True, True, True) and again.done == 7
    again.step()
    assert modes(other) == (False, True, True)
    with pytest.raises(ValueError, match="the state must have"):
        again.load_state_dict({"steps": 3})


def test_schedules_are_checked():
    qat, _ = prepared()
    with pytest.raises(ValueError, match=r"steps must be an integer, at least 1 \(got 0\)"):
        octet.Schedule(qat, 0)
    with pytest.raises(ValueError, match=r"steps must be an integer, at least 1 \(got True\)"):
        octet.Schedule(qat, True)
    for name, start in {"freeze_bn": -1, "observe": "0", "fake_quantize": float("nan"), "freeze_ranges": True}.items():
        with pytest.raises(ValueError, match=rf"{name} must be a number, not negative \(got {start!r}\)"):
            octet.Schedule(qat, 5, **{name: start})
    with pytest.raises(ValueError, match="freeze_ranges must not be before observe"):
        octet.Schedule(qat, 5, observe=0.9, freeze_ranges=0.1)
    schedule = octet.Schedule(qat, 5)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=r"observe must be a number, not negative \(got None\)"):
        schedule.load_state_dict({**before, "steps": 7, "observe": None})
    assert schedule.state_dict() == before


def test_frozen_ranges_and_statistics_stay():
    qat, inputs = trained("ResNet")
    octet.set_mode(qat, freeze_bn=True, freeze_ranges=True)
    before = {k: v.clone() for k, v in qat.state_dict().items() if "running" in k or k.endswith((".min", ".scale"))}
    train(qat, inputs, steps=2)
    assert all(torch.equal(qat.state_dict()[key], value) for key, value in before.items())
    octet.set_mode(qat, freeze_bn=False, freeze_ranges=False)
    train(qat, inputs, steps=1)
    assert not all(torch.equal(qat.state_dict()[key], value) for key, value in before.items())


def test_batch_norms_in_float_parts_freeze_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    qat = octet.prepare(model, (torch.randn(2, 3, 2, 2),), octet.Recipe(overrides={"0": octet.Float, "1": octet.Float}))
    octet.set_mode(qat, freeze_bn=True)
    qat.train()
    before = qat.get_submodule("1").running_mean.clone()
    qat(torch.randn(4, 3, 2, 2) + 5)
    assert torch.equal(qat.get_submodule("1").running_mean, before)


def test_unfreezing_returns_float_batch_norms_to_training_at_once():
    by_hand = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    recipe = octet.Recipe(overrides={"0": octet.Float, "1": octet.Float})
    prepared_one = octet.prepare(by_hand, (torch.randn(2, 3, 2, 2),), recipe)
    for model in (prepared_one, nn.Sequential(*by_hand, octet.nn.FakeQuantize())):
        norm = model.get_submodule("1")
        octet.set_mode(model.train(), freeze_bn=True)
        assert not norm.training
        octet.set_mode(model, freeze_bn=False)
        assert norm.training
        octet.set_mode(model.eval(), freeze_bn=False)
        assert not norm.training


def test_without_fake_quantization_training_is_that_of_the_float_model():
    qat, inputs = prepared("ResNet")
    model, _ = build("ResNet")
    octet.set_mode(qat, fake_quantize=False)
    ((x,), _) = inputs(4)
    for _ in range(2):
        torch.testing.assert_close(qat(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loaded", [False, True])
def test_ranges_observed_while_fake_quantization_is_off_again_are_stale_also_after_loading(loaded):
    qat, inputs = trained("SharedConv")
    octet.set_mode(qat, fake_quantize=False)
    if loaded:
        fresh = prepared()[0]
        fresh.load_state_dict(qat.state_dict())
        qat = fresh
    octet.set_mode(qat, fake_quantize=True)
    octet.convert(qat)  # nothing was observed meanwhile
    octet.set_mode(qat, fake_quantize=False)
    train(qat, inputs, steps=1)
    octet.set_mode(qat, fake_quantize=True)
    with pytest.raises(octet.errors.ConvertError, match="observed in training while it was off, after it had been on"):
        octet.convert(qat)
    train(qat, inputs, steps=1)
    octet.convert(qat)


# Forwards that fail.


@pytest.mark.parametrize("copied", [False, True])
def test_a_forward_that_raises_leaves_no_trace_in_the_ranges(copied):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    qat = octet.prepare(model, (torch.randn(2, 3, 2, 2),))
    qat = copy.deepcopy(qat) if copied else qat
    x = torch.randn(2, 3, 2, 2)
    qat(x)
    before = copy.deepcopy(qat.state_dict())
    blocked = qat.get_submodule("octet.1").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        qat(100 * x)
    assert equal_bits(before, qat.state_dict())
    blocked.remove()
    qat(x)
    entry = qat.get_submodule("octet.input")
    assert float(entry.max) == before["octet.input.max"] == float(x.max())


def test_a_forward_that_raises_leaves_no_trace_in_grids_bound_by_hand():
    first = octet.nn.FakeQuantize()
    model = octet.nn.bind(nn.Sequential(first, nn.Linear(2, 2)))
    model(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.full((1, 3), 50.0))
    model(torch.ones(1, 2))
    assert float(first.max) == 1.0


# Calibration.


@pytest.mark.parametrize("training", [False, True])
def test_calibration_leaves_a_model_ready_to_convert(training):
    qat, inputs = prepared("ResNet")
    qat.train(training)
    weights = copy.deepcopy([p for p in qat.parameters()])
    statistics = qat.get_submodule("layer1.0.bn1").running_mean.clone()
    octet.calibrate(qat, [inputs(4)[0] for _ in range(3)], progress=False)
    assert qat.training == training and modes(qat) == (False, True, False)
    assert equal_bits(weights, list(qat.parameters()))
    assert torch.equal(statistics, qat.get_submodule("layer1.0.bn1").running_mean)
    assert octet.verify(qat, octet.convert(qat), *inputs(2))


def test_calibration_keeps_the_widest_range_and_drops_earlier_ones():
    qat, inputs = trained("SharedConv")
    grid = qat.get_submodule("octet.x")
    batches = [torch.full((2, *inputs(2)[0][0].shape[1:]), value) for value in (-2.0, 0.5, 1.0)]
    octet.calibrate(qat, batches, progress=False)
    assert (float(grid.min), float(grid.max)) == (-2.0, 1.0)
    octet.calibrate(qat, [{"x": batches[1]}], progress=False)
    assert (float(grid.min), float(grid.max)) == (0.5, 0.5)
    assert grid.observer == "moving_average"


def test_calibration_observes_the_float_model():
    qat, inputs = prepared("SharedConv")
    ((x,), _) = inputs(4)
    octet.calibrate(qat, [x], progress=False)
    first = copy.deepcopy(qat.state_dict())
    octet.calibrate(qat, [x], progress=False)
    assert equal_bits(first, qat.state_dict())


def test_calibration_refuses_nothing_and_nan():
    qat, inputs = prepared()
    with pytest.raises(RangeError, match=r"there must be at least one batch \(got 0\)"):
        octet.calibrate(qat, [], progress=False)
    ((x,), _) = inputs(2)
    with pytest.raises(RangeError, match=r"calibrate: x: values must be finite \(got NaN or inf in 1 of 2 batches\)"):
        octet.calibrate(qat, [x, x * float("nan")], progress=False)
    octet.calibrate(qat, [x], progress=False)
    octet.convert(qat)
