"""The promise: the trained model in evaluation mode and its INT8 model give the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octet
from helpers import equal_bits, train, trained
from models import CASES, build
from octet.errors import ConvertError


@pytest.mark.parametrize("name", CASES)
def test_int8_model_gives_the_bits_of_evaluation(name):
    qat, inputs = trained(name)
    int8 = octet.convert(qat)
    for batch in (1, 7):
        args, kwargs = inputs(batch)
        with torch.no_grad():
            assert equal_bits(qat(*args, **kwargs), int8(*args, **kwargs))
    verification = octet.verify(qat, int8, *inputs(3))
    assert verification, str(verification)


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "DenseNet", "ConcatIntoAdd", "DenseSkips", "SharedConv"])
def test_these_networks_are_integer_throughout(name):
    qat, _ = trained(name)
    assert all(row.int8 for row in qat.rows)
    kinds = {type(module).__module__ for module in octet.convert(qat).modules() if not module._modules}
    assert kinds <= {"octet.nn.int8", "octet.convert", *(f"torch.nn.modules.{m}" for m in ("flatten", "module"))}


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_narrow_and_symmetric_grids(bits, symmetric):
    spec = octet.Spec(bits=bits, symmetric=symmetric)
    qat, inputs = trained("ResNet", octet.Recipe(activations=spec, weights=octet.Spec(bits=bits, per_channel=False)))
    args, _ = inputs(2)
    with torch.no_grad():
        assert equal_bits(qat(*args), octet.convert(qat)(*args))


@pytest.mark.parametrize("size", [(9, 13), (33, 17)])
def test_odd_sizes(size):
    model, _ = build("MobileNetV2")
    qat = octet.prepare(model, (torch.randn(1, 3, *size),))
    train(qat, lambda batch: ((torch.randn(batch, 3, *size),), {}))
    x = torch.randn(3, 3, *size)
    with torch.no_grad():
        assert equal_bits(qat.eval()(x), octet.convert(qat)(x))


def test_channels_without_gain_and_with_negative_gain():
    model, inputs = build("ResNet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight[::3] = 0
                module.weight[1::3] = -0.7
    qat = octet.prepare(model, inputs(2)[0])
    train(qat, inputs)
    assert all(p.grad is None or p.grad.isfinite().all() for p in qat.parameters())
    args, _ = inputs(5)
    with torch.no_grad():
        y = qat.eval()(*args)
        assert y.isfinite().all() and equal_bits(y, octet.convert(qat)(*args))


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "ConcatIntoAdd", "AudioNet"])
def test_frozen_training_gives_the_bits_of_evaluation(name):
    qat, inputs = trained(name)
    octet.set_mode(qat, freeze_bn=True, freeze_ranges=True)
    args, kwargs = inputs(3)
    qat.train()
    for module in qat.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    frozen = qat(*args, **kwargs)
    assert any(y.requires_grad for y in torch.utils._pytree.tree_leaves(frozen))
    with torch.no_grad():
        assert equal_bits(frozen, qat.eval()(*args, **kwargs))


def test_codes_in_and_out():
    qat, inputs = trained("ResNet")
    int8 = octet.convert(qat)
    codes = octet.convert(qat, inputs="codes", outputs="codes")
    ((x,), _) = inputs(3)
    (in_scale, in_zero), (out_scale, out_zero) = codes.input_grids["x"], *codes.output_grids.values()
    q = octet.ops.quantize_per_tensor(
        x, torch.tensor(in_scale), torch.tensor(in_zero, dtype=torch.int32), 0, 255, torch.uint8
    )
    y = codes(q)
    assert y.dtype == torch.uint8
    assert torch.equal((y.float() - out_zero) * torch.tensor(out_scale), int8(x))


def test_convert_leaves_the_model_alone():
    qat, inputs = trained("ResNet")
    before = {key: value.clone() for key, value in qat.state_dict().items()}
    int8 = octet.convert(qat.train())
    assert qat.training and not int8.training
    train(qat, inputs, steps=1)
    after = octet.convert(qat)
    assert not equal_bits(int8(*inputs(2)[0]), after(*inputs(2)[0]))
    assert before.keys() == qat.state_dict().keys()


# What convert refuses, by name.


def test_refuses_what_was_never_calibrated():
    model, inputs = build("ResNet")
    qat = octet.prepare(model, inputs(2)[0])
    with pytest.raises(ConvertError, match=r"x: must have a finite range .*train or calibrate first"):
        octet.convert(qat)


def test_refuses_fake_quantization_off():
    qat, _ = trained("ResNet")
    octet.set_mode(qat, fake_quantize=False)
    with pytest.raises(ConvertError, match="must have fake quantization on"):
        octet.convert(qat)


def test_refuses_ranges_observed_while_fake_quantization_was_off():
    qat, inputs = trained("ResNet")
    octet.set_mode(qat, fake_quantize=False)
    train(qat, inputs, steps=1)
    octet.set_mode(qat, observe=False, fake_quantize=True)
    train(qat, inputs, steps=1)
    with pytest.raises(ConvertError, match="must have been observed with fake quantization on"):
        octet.convert(qat)
    octet.set_mode(qat, observe=True)
    train(qat, inputs, steps=1)
    octet.convert(qat)


def test_observing_before_fake_quantization_begins_is_fine():
    model, inputs = build("ResNet")
    qat = octet.prepare(model, inputs(2)[0])
    octet.set_mode(qat, fake_quantize=False)
    train(qat, inputs, steps=2)
    octet.set_mode(qat, fake_quantize=True)
    assert octet.verify(qat, octet.convert(qat), *inputs(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_ranges_that_are_not_finite(value):
    model, inputs = build("ResNet")
    qat = octet.prepare(model, inputs(2)[0])
    with torch.no_grad():
        qat.train()(torch.full((2, 3, 8, 8), value))
    with pytest.raises(ConvertError, match=r"x: must have a finite range .*1 forwards with NaN or inf"):
        octet.convert(qat)


def test_refuses_weights_that_are_not_finite():
    qat, _ = trained("ResNet")
    with torch.no_grad():
        qat.get_submodule("layer1.0.conv1").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConvertError, match=r"layer1.0.conv1: conv.weight must be finite"):
        octet.convert(qat)


def test_refuses_other_models_and_choices():
    with pytest.raises(TypeError, match=r"must come from octet.prepare \(got Linear\)"):
        octet.convert(nn.Linear(2, 2))
    qat, _ = trained("SharedConv")
    with pytest.raises(ValueError, match=r"inputs must be 'float' or 'codes' \(got 'int8'\)"):
        octet.convert(qat, inputs="int8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_input_dtype_gives_the_same_bits(dtype):
    qat, inputs = trained("ResNet")
    x = inputs(3)[0][0].to(dtype)
    with torch.no_grad():
        expected = qat(x)
        assert expected.dtype == torch.float32 and torch.equal(expected, octet.convert(qat)(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(expected, qat(x))
