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


def test_verify_wants_its_two_kinds_of_model():
    qat, inputs = trained("SharedConv")
    with pytest.raises(
        TypeError, match=r"must come from octet.prepare and octet.convert \(got \('QATModel', 'QATModel'\)"
    ):
        octet.verify(qat, qat, *inputs(2))
    with pytest.raises(TypeError, match=r"must come from octet.prepare"):
        octet.verify(nn.Linear(2, 2), octet.convert(qat), *inputs(2))
