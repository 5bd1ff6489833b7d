"""Mistakes that users make: each gets an error that says what must hold and what came."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import octet
from octet.errors import CaptureError, FileError, PrepareError, StateDictError

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(channels: int = 4, stride: int = 1) -> nn.Sequential:
    layers = {"stem": nn.Conv2d(3, channels, 3, stride), "bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    return nn.Sequential(
        OrderedDict(**layers, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(channels, 5))
    )


def calibrated(**options: int) -> octet.QATModel:
    qat = octet.prepare(network(**options), (X,))
    octet.calibrate(qat, [X], progress=False)
    return qat


class Looping(nn.Module):
    def forward(self, x):
        for _ in range(int(x.sum().item())):
            x = x + 1
        return x


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("my own bug")


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, torch.zeros(8)), 4)


@pytest.mark.parametrize(
    ("mistake", "kind", "message"),
    [
        (lambda: octet.prepare(nn.Linear(4, 2), (X,)), CaptureError, r"layers as children \(got a bare Linear\)"),
        (lambda: octet.prepare(Failing(), (X,)), CaptureError, r"must run on the example inputs.*my own bug"),
        (lambda: octet.prepare(network(), (X[:, :1],)), CaptureError, r"must run on the example inputs.*3 channels"),
        (lambda: octet.prepare(Looping(), (X,)), CaptureError, r"must not depend on tensor values"),
        (lambda: octet.prepare(octet.convert(calibrated()), (X,)), PrepareError, r"got an INT8 model"),
        (
            lambda: octet.calibrate(network(), [X]),
            TypeError,
            r"calibrate: .* must come from octet.prepare .*Sequential",
        ),
        (lambda: octet.Schedule(network(), 10), TypeError, r"Schedule: .* must come from octet.prepare"),
        (lambda: octet.set_mode(network(), observe=False), TypeError, r"set_mode: .* must come from octet.prepare"),
        (lambda: octet.Schedule(calibrated(), 10.5), ValueError, r"steps must be an integer.*10.5"),
        (lambda: octet.calibrate(calibrated(), loader()), TypeError, r"got 2 values.*\(x for x, _ in loader\)"),
        (lambda: octet.calibrate(calibrated(), X), TypeError, r"iterable of batches \(got Tensor\)"),
        (lambda: octet.calibrate(calibrated(), ["a"]), TypeError, r"a batch must be a tensor.*got str"),
        (lambda: octet.Recipe(weights=4), TypeError, r"weights must be a Spec \(got 4\)"),
        (lambda: octet.Spec(bits=4.0), ValueError, r"bits must be an integer, 2 to 8 \(got 4.0\)"),
        (lambda: octet.Spec(bits="8"), ValueError, r"bits must be an integer, 2 to 8 \(got '8'\)"),
        (lambda: octet.Spec(averaging_constant="a"), ValueError, r"averaging_constant must be in \(0, 1\] \(got 'a'\)"),
        (lambda: octet.Spec(averaging_constant=True), ValueError, r"averaging_constant must be .* \(got True\)"),
        (lambda: octet.Spec(percentile=None), ValueError, r"percentile must be in \(0, 100\] \(got None\)"),
        (lambda: octet.Spec(percentile=float("nan")), ValueError, r"percentile must be in \(0, 100\] \(got nan\)"),
        (lambda: octet.Spec(symmetric="yes"), ValueError, r"symmetric must be True or False \(got 'yes'\)"),
        (lambda: octet.Spec(per_channel=None), ValueError, r"per_channel must be True or False \(got None\)"),
        (lambda: octet.Recipe(overrides=["stem"]), TypeError, r"overrides must be a dict \(got list\)"),
        (lambda: octet.Recipe(overrides={int: octet.Float}), TypeError, r"keys must be module names or types.*int"),
        (lambda: octet.save(calibrated(), ""), IsADirectoryError, r"save: \.: must be a file \(got a folder\)"),
        (lambda: calibrated()(X[:, :1]), ValueError, r"stem: the input must have .* size 3 .*got \[8, 1, 8, 8\]"),
        (lambda: calibrated()(X[0, 0]), ValueError, r"stem: the input must have 4 dimensions.*got \[8, 8\]"),
    ],
)
def test_mistakes_are_named(mistake, kind, message):
    with pytest.raises(kind, match=message):
        mistake()


def test_arguments_come_in_a_tuple(tmp_path):
    qat = calibrated()
    int8 = octet.convert(qat)
    with pytest.raises(TypeError, match=r"verify: args must be a tuple of inputs \(got Tensor\)"):
        octet.verify(qat, int8, X)
    with pytest.raises(TypeError, match=r"torchscript: args must be a tuple of inputs \(got Tensor\)"):
        octet.export.torchscript(int8, X, tmp_path / "model.ts")


def test_a_missing_folder_is_named_before_the_work(tmp_path):
    int8 = octet.convert(calibrated())
    for write in (octet.save, lambda model, path: octet.export.torchscript(model, (X,), path)):
        with pytest.raises(FileNotFoundError, match=r"nowhere/model: the folder must exist"):
            write(int8, tmp_path / "nowhere" / "model")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_files_of_another_kind_are_named(tmp_path):
    octet.export.torchscript(octet.convert(calibrated()), (X,), tmp_path / "model.ts")
    with pytest.raises(FileError, match=r"got a TorchScript file: torch.jit.load"):
        octet.load(tmp_path / "model.ts")
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(FileError, match=r"got a damaged or foreign one"):
        octet.load(tmp_path / "noise")


def test_the_state_of_an_int8_model_is_all_of_it():
    """Zero points and bounds are no tensors; loading must bring them all the same."""
    source, target = octet.convert(calibrated()), octet.convert(calibrated())
    assert not torch.equal(source(X), target(X))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(X), target(X))
    assert target.about == source.about


def test_the_state_of_another_int8_model_is_refused():
    target = octet.convert(calibrated())
    before = target(X)
    other = octet.prepare(nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), relu=nn.ReLU())), (X,))
    octet.calibrate(other, [X], progress=False)
    with pytest.raises(StateDictError, match=r"missing: fc.weight"):
        target.load_state_dict(octet.convert(other).state_dict())
    assert torch.equal(before, target(X))


def test_forced_instruction_sets_hold_until_told_otherwise():
    before = octet.cpu.active()
    restore = octet.cpu.force("generic")
    assert octet.cpu.active() == "generic"
    restore.close()
    assert octet.cpu.active() == before
    with pytest.raises(ValueError, match="sse"):
        octet.cpu.force("sse")
