"""verify finds a planted fault and names the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octet
from helpers import trained


def test_equal_models_verify():
    qat, inputs = trained("ResNet")
    result = octet.verify(qat.train(), octet.convert(qat), *inputs(2))
    assert result and result.first is None and str(result).startswith("equal in every bit: ")
    assert qat.training and len(result.layers) >= 15


@pytest.mark.parametrize("layer", ["stem.0", "layer1.0.conv2", "layer2.0.down.0", "fc"])
def test_a_fault_planted_in_one_layer_is_found_and_named(layer):
    qat, inputs = trained("ResNet")
    int8 = octet.convert(qat)
    module = int8.get_submodule(layer)
    module.bias += torch.tensor(round(3 / float(module.multiplier.min())), dtype=torch.int32)
    result = octet.verify(qat, int8, *inputs(4))
    assert not result and result.first.name == layer and result.first.largest >= 1
    assert str(result).startswith(f"first difference in {layer}: ") and "steps" in str(result)


def test_a_fault_in_an_add_is_found():
    qat, inputs = trained("DenseSkips")
    int8 = octet.convert(qat)
    name, add = next((n, m) for n, m in int8.named_modules() if isinstance(m, octet.nn.int8.Add))
    add.a_ratio *= 1.5
    assert octet.verify(qat, int8, *inputs(4)).first.name == name


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.rest = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(nn.functional.pad(self.conv(x), (1, 1, 1, 1)))


@pytest.mark.parametrize("kind", [octet.nn.int8.MaxPool, octet.nn.int8.Pad, octet.nn.int8.Clamp])
def test_a_fault_in_a_layer_without_a_grid_of_its_own_is_found(kind):
    x = torch.randn(2, 3, 8, 8)
    qat = octet.prepare(Padded(), (x,))
    octet.calibrate(qat, [x], progress=False)
    int8 = octet.convert(qat)
    name, layer = next((n, m) for n, m in int8.named_modules() if isinstance(m, kind))
    assert octet.verify(qat, int8, (x,))
    layer.register_forward_hook(lambda module, args, codes: codes.clamp(max=int(codes.max()) - 1))
    result = octet.verify(qat, int8, (x,))
    assert result.first.name == name and result.first.largest == 1


@pytest.mark.parametrize("layer", ["stem.0", "fc"])
def test_a_changed_shape_names_layer_and_shapes(layer):
    qat, inputs = trained("ResNet")
    int8 = octet.convert(qat)
    module = int8.get_submodule(layer)
    module.weight, module.bias, module.multiplier = (t[:-1] for t in (module.weight, module.bias, module.multiplier))
    result = octet.verify(qat, int8, *inputs(4))
    want, got = result.first.expected_shape, result.first.shape
    assert not result and result.first.name == layer and (want[0], want[1] - 1, *want[2:]) == got
    assert str(result) == f"first difference in {layer}: the shape must be {want} (got {got})"


def test_a_failing_forward_of_equal_layers_is_raised():
    qat, inputs = trained("ResNet")
    int8 = octet.convert(qat)
    int8.get_submodule("fc").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        octet.verify(qat, int8, *inputs(4))


def test_verify_wants_its_two_kinds_of_model():
    qat, inputs = trained("SharedConv")
    with pytest.raises(
        TypeError, match=r"must come from octet.prepare and octet.convert \(got \('QATModel', 'QATModel'\)"
    ):
        octet.verify(qat, qat, *inputs(2))
    with pytest.raises(TypeError, match=r"must come from octet.prepare"):
        octet.verify(nn.Linear(2, 2), octet.convert(qat), *inputs(2))
