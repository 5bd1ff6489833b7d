"""Modules composed by hand: each block against its float composition and against its INT8 module."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octet
import octet.nn as qnn
from helpers import equal_bits
from octet.nn import int8


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


BLOCKS = {
    "Conv1d": (lambda g: qnn.Conv1d(4, 6, 3, padding=1, input=g), (4, 11)),
    "ConvReLU1d": (lambda g: qnn.ConvReLU1d(4, 6, 3, stride=2, input=g), (4, 11)),
    "ConvBn1d": (lambda g: qnn.ConvBn1d(4, 6, 3, input=g), (4, 11)),
    "ConvBnReLU1d": (lambda g: qnn.ConvBnReLU1d(4, 6, 3, input=g), (4, 11)),
    "Conv2d": (lambda g: qnn.Conv2d(4, 6, 3, padding="same", input=g), (4, 7, 9)),
    "ConvReLU2d": (lambda g: qnn.ConvReLU2d(4, 6, (1, 3), dilation=2, input=g), (4, 7, 9)),
    "ConvBn2d": (lambda g: qnn.ConvBn2d(4, 8, 3, groups=4, input=g), (4, 7, 9)),
    "ConvBnReLU2d": (lambda g: qnn.ConvBnReLU2d(4, 6, 3, stride=2, bias=False, input=g), (4, 7, 9)),
    "Conv3d": (lambda g: qnn.Conv3d(2, 3, 3, padding=1, input=g), (2, 4, 5, 6)),
    "ConvReLU3d": (lambda g: qnn.ConvReLU3d(2, 3, 2, input=g), (2, 4, 5, 6)),
    "ConvBn3d": (lambda g: qnn.ConvBn3d(2, 3, 2, input=g), (2, 4, 5, 6)),
    "ConvBnReLU3d": (lambda g: qnn.ConvBnReLU3d(2, 3, 2, input=g), (2, 4, 5, 6)),
    "Linear": (lambda g: qnn.Linear(10, 6, input=g), (3, 10)),
    "LinearReLU": (lambda g: qnn.LinearReLU(10, 6, bias=False, input=g), (10,)),
    "LinearBn1d": (lambda g: qnn.LinearBn1d(10, 6, input=g), (10,)),
    "LinearBnReLU1d": (lambda g: qnn.LinearBnReLU1d(10, 6, input=g), (10,)),
    "BatchNorm1d": (lambda g: qnn.BatchNorm1d(5, input=g), (5,)),
    "BatchNorm2d": (lambda g: qnn.BatchNorm2d(5, input=g), (5, 4, 3)),
    "BatchNorm3d": (lambda g: qnn.BatchNorm3d(5, input=g), (5, 4, 3, 2)),
    "AvgPool1d": (lambda g: qnn.AvgPool1d(3, padding=1, input=g), (4, 11)),
    "AvgPool2d": (lambda g: qnn.AvgPool2d(3, 2, 1, count_include_pad=False, input=g), (4, 7, 9)),
    "AvgPool3d": (lambda g: qnn.AvgPool3d(2, input=g), (2, 4, 5, 6)),
    "AdaptiveAvgPool1d": (lambda g: qnn.AdaptiveAvgPool1d(3, input=g), (4, 11)),
    "AdaptiveAvgPool2d": (lambda g: qnn.AdaptiveAvgPool2d((3, 1), input=g), (4, 7, 9)),
    "AdaptiveAvgPool3d": (lambda g: qnn.AdaptiveAvgPool3d(1, input=g), (2, 4, 5, 6)),
    "Mean1d": (lambda g: qnn.Mean1d(input=g), (4, 11)),
    "Mean2d": (lambda g: qnn.Mean2d(input=g), (4, 7, 9)),
    "Mean3d": (lambda g: qnn.Mean3d(input=g), (2, 4, 5, 6)),
}


def float_forward(block: qnn.Block, x: torch.Tensor) -> torch.Tensor:
    """The composition of plain torch that a block stands for, on copies of its children."""
    if isinstance(block, qnn.NormBlock):
        layer = getattr(block, "conv", getattr(block, "linear", nn.Identity()))
        y = copy.deepcopy(layer)(x)
        y = copy.deepcopy(block.bn)(y) if block.bn is not None else y
        return y.relu() if block.activation else y
    pool = block.pool
    dims = x.dim() - 2
    if pool.kernel_size:
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
        return function(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad)
    y = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1](x, pool.output_size)
    return y.flatten(1) if type(block).__name__.startswith("Mean") else y


def observed(name: str, batch: int = 4) -> tuple[qnn.FakeQuantize, qnn.Block, torch.Tensor]:
    make, shape = BLOCKS[name]
    grid = qnn.FakeQuantize()
    block = make(grid)
    x = image(batch, *shape)
    for _ in range(2):
        block(grid(x))
    return grid, block, x


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_its_float_composition_until_it_has_ranges(name):
    make, shape = BLOCKS[name]
    grid = qnn.FakeQuantize()
    block = make(grid)
    x = image(4, *shape)
    expected = float_forward(block, x)
    torch.testing.assert_close(block(grid(x)), expected, rtol=1e-5, atol=1e-5)
    largest = max(0.0, float(expected.detach().max()))
    assert block.output.ready and float(block.output.max) == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_evaluation_gives_the_bits_of_the_int8_module(name):
    grid, block, x = observed(name)
    grid.eval(), block.eval()
    codes = octet.ops.quantize_per_tensor(x, *grid.grid(), torch.uint8)
    with torch.no_grad():
        expected = block(grid(x))
        actual = octet.ops.dequantize_per_tensor(block.to_int8()(codes), block.output.scale, block.output.zero_point)
    assert torch.equal(actual, expected)
    assert (expected - float_forward(block, x)).abs().max() <= max(12 * block.output.scale, 12 * grid.scale)


@pytest.mark.parametrize("name", BLOCKS)
def test_training_has_finite_gradients_on_the_grid(name):
    grid, block, x = observed(name)
    x.requires_grad_()
    scale = block.output.scale.clone()  # what this forward sees changes it
    y = block(grid(x))
    y.square().sum().backward()
    codes = y.detach() / scale
    assert (codes - codes.round()).abs().max() < 1e-3
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("name", ["ConvBnReLU2d", "LinearBn1d", "BatchNorm2d"])
def test_batch_norm_statistics_follow_as_in_torch(name):
    make, shape = BLOCKS[name]
    block = make(qnn.FakeQuantize())
    reference = copy.deepcopy(block)
    x = image(4, *shape)
    for _ in range(2):
        block(x)
        layer = getattr(reference, "conv", getattr(reference, "linear", nn.Identity()))
        reference.bn(layer(x))
    for key, value in reference.bn.named_buffers():
        torch.testing.assert_close(getattr(block.bn, key), value, rtol=1e-5, atol=1e-6)


def test_batch_norm_with_cumulative_average():
    block = qnn.ConvBn2d(3, 4, 1, momentum=None)
    reference = copy.deepcopy(block)
    for _ in range(3):
        x = image(2, 3, 5, 5)
        block(x)
        reference.bn(reference.conv(x))
    torch.testing.assert_close(block.bn.running_var, reference.bn.running_var)


def test_low_memory_gives_the_same_gradients():
    grid, block, x = observed("ConvBnReLU2d")
    saving = copy.deepcopy(block)
    saving.low_memory = True
    block(grid(x)).square().sum().backward()
    saving(grid(x)).square().sum().backward()
    assert torch.equal(block.conv.weight.grad, saving.conv.weight.grad)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = qnn.FakeQuantize()
        self.a = qnn.ConvBnReLU2d(3, 8, 3, padding=1, input=self.quantize)
        self.b = qnn.ConvBn2d(8, 8, 3, padding=1, input=self.a.output)
        self.add = qnn.AddReLU(self.a.output, self.b.output)
        self.head = qnn.Conv2d(8, 4, 1, input=self.add.output, output=self.add.output)
        self.cat = qnn.Cat(self.add.output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(self.quantize(x))
        y = self.add(y, self.b(y))
        return self.cat([y, self.head(y)])


def test_bound_modules_add_and_concatenate_on_tied_grids():
    model = qnn.bind(Residual())
    for _ in range(3):
        model(image(2, 3, 6, 6))
    grids = [model.a.output, model.b.output, model.add.output]
    units = {round(float(grid.scale) / int(grid.steps), 12) for grid in grids}
    assert len(units) == 1 and all(int(grid.steps) % 2 for grid in grids)
    model.eval()
    x = image(2, 3, 6, 6)
    with torch.no_grad():
        a = octet.ops.quantize_per_tensor(model.a(model.quantize(x)), *model.a.output.grid(), torch.uint8)
        b = model.b.to_int8()(a)
        y = model.add.to_int8()(a, b)
        codes = model.cat.to_int8()([y, model.head.to_int8()(y)])
        expected = model(x)
    out = model.add.output
    assert torch.equal(octet.ops.dequantize_per_tensor(codes, out.scale, out.zero_point), expected)


def test_binding_survives_deepcopy_and_is_refused_twice():
    model = qnn.bind(Residual())
    copied = copy.deepcopy(model)
    copied(image(2, 3, 6, 6))
    assert copied.a.output.ready and not model.a.output.ready
    with pytest.raises(ValueError, match=r"bind: quantize: must not be bound already"):
        qnn.bind(model)
    with pytest.raises(ValueError, match=r"bind: 0: both operands must have grids"):
        qnn.bind(nn.Sequential(qnn.Add()))


def test_subtraction():
    a, b = qnn.FakeQuantize(), qnn.FakeQuantize()
    model = nn.ModuleDict({"a": a, "b": b, "sub": qnn.Add(a, b, subtract=True)})
    qnn.bind(model)
    x, y = image(2, 5), image(2, 5)
    grids = [a, b, model["sub"].output]
    for _ in range(2):
        difference = model["sub"](a(x), b(y))
        assert difference.shape == x.shape
        for hook in model._forward_hooks.values():
            hook(model, (), difference)
    assert all(grid.ready for grid in grids)
    model.eval()
    assert (model["sub"](a(x), b(y)) - (x - y)).abs().max() <= 3 * model["sub"].output.scale


# FakeQuantize and observers.


def test_fake_quantize_observes_first_and_quantizes_from_then_on():
    grid = qnn.FakeQuantize()
    x = torch.linspace(-1, 3, 50)
    assert torch.equal(grid(x), x)
    y = grid(x)
    assert not torch.equal(y, x) and (y - x).abs().max() <= grid.scale / 2 + 1e-6
    assert (float(grid.min), float(grid.max)) == (-1.0, 3.0)


def test_evaluation_never_observes():
    grid = qnn.FakeQuantize().eval()
    x = image(5)
    assert torch.equal(grid(x), x)
    assert float(grid.min) == math.inf and not grid.ready


def test_moving_average_and_min_max():
    for observer, expected in (("moving_average", 1.0 + 0.1 * (3.0 - 1.0)), ("min_max", 3.0)):
        grid = qnn.FakeQuantize(octet.Spec(observer=observer, averaging_constant=0.1))
        grid(torch.tensor([0.0, 1.0]))
        grid(torch.tensor([0.0, 3.0]))
        assert float(grid.max) == pytest.approx(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ranges_that_are_not_finite_are_counted_and_skipped(value):
    grid = qnn.FakeQuantize()
    grid(torch.tensor([-1.0, 1.0]))
    grid(torch.tensor([0.0, value]))
    assert float(grid.max) == 1.0 and int(grid.nonfinite) == 1


def test_fake_quantize_loads_without_resizing():
    grid = qnn.FakeQuantize()
    grid(image(5))
    other = qnn.FakeQuantize()
    other.load_state_dict(grid.state_dict())
    assert other.ready and equal_bits(grid.state_dict(), other.state_dict())
    assert all(buffer.dim() == 0 for buffer in other.buffers())
    half = {key: value for key, value in grid.state_dict().items() if key != "scale"}
    with pytest.raises(RuntimeError, match="scale"):
        qnn.FakeQuantize().load_state_dict(half)
    untouched = qnn.FakeQuantize()
    untouched.load_state_dict({})
    assert not untouched.ready


def test_fake_quantize_refuses_integers():
    with pytest.raises(TypeError, match=r"FakeQuantize stem: the input must be floating point \(got torch.int64\)"):
        qnn.FakeQuantize(name="stem")(torch.arange(3))


@pytest.mark.parametrize("kind", [qnn.MinMaxObserver, qnn.MovingAverageObserver])
def test_observers_per_channel(kind):
    observer = kind(channels=3, axis=1)
    x = image(4, 3, 5)
    assert observer(x) is x
    assert torch.equal(observer.min, x.amin((0, 2))) and torch.equal(observer.max, x.amax((0, 2)))
    scale, zero_point = observer.calculate_qparams(-127, 127, symmetric=True)
    assert scale.shape == (3,) and zero_point.dtype == torch.int32 and not zero_point.any()
    with pytest.raises(ValueError, match=r"input.size\(1\) must be 3 \(got 2\)"):
        observer(image(4, 2, 5))


def test_specs_are_checked():
    with pytest.raises(ValueError, match=r"bits must be an integer, 2 to 8 \(got 9\)"):
        octet.Spec(bits=9)
    with pytest.raises(ValueError, match=r"observer must be one of"):
        octet.Spec(observer="histogram")
    with pytest.raises(ValueError, match=r"averaging_constant must be in \(0, 1\]"):
        octet.Spec(averaging_constant=0.0)


def test_convolutions_without_an_integer_form_say_why():
    with pytest.raises(ValueError, match=r"padding_mode must be 'zeros' \(got 'circular'\)"):
        int8.geometry(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="padding='same' must be equal on both sides"):
        int8.geometry(nn.Conv2d(3, 3, 2, padding="same"))
