"""What people do to models besides training them: layers replaced, buffers written, names chosen, layers shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import octet
from octet.errors import ConvertError, PrepareError, StateDictError


class Net(nn.Module):
    """The input has the name of a layer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(288, classes)

    def forward(self, stem: Tensor) -> Tensor:
        return self.fc(self.stem(stem).flatten(1))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared(model: nn.Module) -> octet.QATModel:
    qat = octet.prepare(model, (X,))
    octet.calibrate(qat, [X], progress=False)
    return qat.eval()


def assert_converts(qat: octet.QATModel) -> None:
    assert torch.equal(qat(X), octet.convert(qat)(X))


def test_an_input_may_have_the_name_of_a_layer():
    assert_converts(prepared(Net()))


def test_a_moving_average_of_the_state_is_quantized():
    """The state is copied tensor by tensor, by nothing that the modules could notice."""
    qat = octet.prepare(Net(), (X,))
    average = copy.deepcopy(qat).eval()
    for _ in range(2):
        qat.train()(X)
        for mine, theirs in zip(average.state_dict().values(), qat.state_dict().values(), strict=True):
            mine.copy_(theirs)
    assert torch.equal(average(X), qat.eval()(X))
    assert_converts(average)


def test_layers_may_be_replaced():
    qat = prepared(Net())
    qat.fc = nn.Linear(288, 7)
    qat.get_submodule("stem")[0] = nn.Conv2d(3, 8, 3, bias=False)
    qat.train()(X).sum().backward()
    assert qat(X).shape == (4, 7) and qat.fc.weight.grad.any() and qat.get_submodule("stem.0").weight.grad.any()
    octet.calibrate(qat, [X], progress=False)
    assert_converts(qat.eval())
    qat.fc = nn.Conv2d(3, 3, 1)
    with pytest.raises(TypeError, match=r"fc: a layer can only be replaced by another Linear \(got Conv2d\)"):
        qat(X)


@pytest.mark.parametrize("name", ["octet", "_to_float", "graph", "code", "about", "rows", "lowered", "unreached"])
def test_names_that_octet_needs_are_refused(name: str):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules[name](x)

    with pytest.raises(PrepareError, match=f"no child of the model may be named '{name}'"):
        octet.prepare(Named(), (X,))


def test_a_layer_called_in_float_and_in_int8_is_refused():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.bn(self.conv(x)))

    with pytest.raises(PrepareError, match="bn: all calls of one layer must be INT8 or all float"):
        octet.prepare(Shared(), (X,))
    qat = octet.prepare(Shared(), (X,), octet.Recipe(overrides={"bn": octet.Float}))
    octet.calibrate(qat, [X], progress=False)
    assert_converts(qat.eval())


def test_one_channel_before_a_float_part():
    """Where a dimension has size 1 strides are ambiguous, and float kernels choose by them."""
    model = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.ConvTranspose2d(1, 3, 3, 2))
    qat = prepared(model)
    int8 = octet.convert(qat)
    for x in (X[:1], X, X[:1].contiguous(memory_format=torch.channels_last)):
        assert torch.equal(qat(x), int8(x))


def test_negative_variance_is_refused():
    qat = prepared(Net())
    qat.get_submodule("stem.1").running_var.fill_(-5)
    with pytest.raises(ConvertError, match=r"stem.0: bn.running_var must not be negative \(got -5\)"):
        octet.convert(qat)


def test_a_state_that_does_not_fit_changes_no_int8_model():
    int8, other = (octet.convert(prepared(Net(classes))) for classes in (4, 7))
    before = int8(X)
    with pytest.raises(StateDictError, match="of another shape"):
        int8.load_state_dict(other.state_dict())
    assert torch.equal(int8(X), before)


def test_forward_with_any_number_of_inputs():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, *xs: Tensor) -> Tensor:
            return self.conv(xs[0]) + xs[1]

    qat = octet.prepare(Sum(), (X, X))
    octet.calibrate(qat, [(X, X)], progress=False)
    qat.eval()
    assert torch.equal(qat(X[:1], X[1:2]), octet.convert(qat)(X[:1], X[1:2]))


def test_an_in_place_activation_changes_what_is_read_again():
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(self.relu(x)) + x  # x has been overwritten

    model = PreActivation().eval()
    qat = octet.prepare(model, (X,)).eval()
    assert torch.equal(qat(X), model(X))
    octet.calibrate(qat, [X], progress=False)
    assert_converts(qat)
