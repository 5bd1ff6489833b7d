"""Every form a layer may take: float at first, and then the same bits in QAT evaluation and INT8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octet
from helpers import equal_bits, train


class Net(nn.Module):
    """Layers by name and what is done with them."""

    def __init__(self, compute: Callable[[Net, Tensor], object], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.compute(self, x)


def conv(channels: int = 3, out: int = 8, kernel: int | tuple[int, int] = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, **options)


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.b(x)
    y -= net.c(x)
    return y


def chunks(net: Net, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, 1)
    return net.b(F.silu(left) + torch.sigmoid(right))


def tied_weights() -> Net:
    net = Net(lambda n, x: n.b(F.relu(n.a(x.mean((2, 3))))), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    net.b.weight = net.a.weight
    return net


# name: (network, names of the layers that stay float)
FORMS: dict[str, tuple[Callable[[], Net], set[str]]] = {
    # Convolution and linear.
    "groups, uneven padding, stride, dilation": (
        lambda: Net(
            lambda n, x: n.b(n.a(x)),
            a=conv(3, 9, (3, 2), groups=3, padding=(2, 1), stride=(2, 1), dilation=(1, 2)),
            b=conv(9, 6, groups=3, padding="same"),
        ),
        set(),
    ),
    "padding valid": (lambda: Net(lambda n, x: n.a(x), a=conv(padding="valid")), set()),
    "padding same, even kernel": (lambda: Net(lambda n, x: n.a(x), a=conv(kernel=2, padding="same")), {"a"}),
    "padding reflect": (lambda: Net(lambda n, x: n.a(x), a=conv(padding=1, padding_mode="reflect")), {"a"}),
    "called twice": (lambda: Net(lambda n, x: n.a(F.relu(n.a(x))), a=conv(3, 3)), set()),
    "tied weights": (tied_weights, set()),
    "linear over tokens": (
        lambda: Net(lambda n, x: n.b(F.relu(n.a(x.flatten(2).mT))), a=nn.Linear(3, 5), b=nn.Linear(5, 4)),
        set(),
    ),
    "linear with batch norm": (
        lambda: Net(lambda n, x: F.relu6(n.bn(n.a(x.flatten(1)))), a=nn.Linear(297, 5), bn=nn.BatchNorm1d(5)),
        set(),
    ),
    "batch norm over tokens": (
        lambda: Net(lambda n, x: n.bn(n.a(x.flatten(2))), a=nn.Linear(99, 5), bn=nn.BatchNorm1d(3)),
        set(),
    ),
    "batch norm first": (lambda: Net(lambda n, x: n.a(n.bn(x)), a=conv(), bn=nn.BatchNorm2d(3)), set()),
    "batch norm without parameters": (
        lambda: Net(lambda n, x: n.bn(n.a(x)), a=conv(), bn=nn.BatchNorm2d(8, affine=False)),
        set(),
    ),
    "batch norm without statistics": (
        lambda: Net(lambda n, x: n.bn(n.a(x)), a=conv(), bn=nn.BatchNorm2d(8, track_running_stats=False)),
        {"bn"},
    ),
    # Pools.
    "max pool, ceil mode": (
        lambda: Net(lambda n, x: n.b(F.max_pool2d(n.a(x), 3, 2, 1, ceil_mode=True)), a=conv(), b=conv(8, 4)),
        set(),
    ),
    "max pool with indices": (
        lambda: Net(lambda n, x: n.b(n.p(n.a(x))[0]), a=conv(), b=conv(8, 4), p=nn.MaxPool2d(2, return_indices=True)),
        {"p.getitem"},
    ),
    "max pool, ceil mode, larger than the input": (
        lambda: Net(lambda n, x: n.p(n.a(x)[..., :1, :2]), a=conv(), p=nn.MaxPool2d((2, 3), 2, ceil_mode=True)),
        set(),
    ),
    "max pool over images without channels": (
        lambda: Net(lambda n, x: n.b(F.max_pool2d(n.a(x).squeeze(1), 2).flatten(1)), a=conv(out=1), b=nn.Linear(12, 4)),
        {"max_pool2d"},
    ),
    "max pool over features": (
        lambda: Net(
            lambda n, x: n.b(n.p(n.a(x.mean((2, 3))))), a=nn.Linear(3, 6), p=nn.MaxPool1d(2), b=nn.Linear(3, 4)
        ),
        {"p"},
    ),
    "average pool, ceil mode, larger than the input": (
        lambda: Net(lambda n, x: n.p(n.a(x)[..., :1, :2]), a=conv(), p=nn.AvgPool2d((2, 3), 2, ceil_mode=True)),
        set(),
    ),
    "average pool, ceil mode, padding not counted": (
        lambda: Net(lambda n, x: n.b(n.a(x)), a=conv(), b=nn.AvgPool2d(2, 2, 1, True, False)),
        set(),
    ),
    "average pool, ceil mode, padding counted": (
        lambda: Net(lambda n, x: n.b(n.a(x)), a=conv(), b=nn.AvgPool2d(3, 2, 1, True)),
        set(),
    ),
    "average pool, divisor": (
        lambda: Net(lambda n, x: F.avg_pool2d(n.a(x), 3, 2, ceil_mode=True, divisor_override=5), a=conv()),
        set(),
    ),
    "average pool, then ReLU": (lambda: Net(lambda n, x: F.relu(F.avg_pool2d(n.a(x), 2)), a=conv()), set()),
    "adaptive pool, uneven windows": (
        lambda: Net(lambda n, x: n.p(n.a(x)), a=conv(), p=nn.AdaptiveAvgPool2d((3, 2))),
        set(),
    ),
    "adaptive pool, larger than the input": (
        lambda: Net(lambda n, x: n.p(n.a(x)), a=conv(), p=nn.AdaptiveAvgPool2d(12)),
        set(),
    ),
    "adaptive pool, one size as the input": (
        lambda: Net(lambda n, x: n.p(n.a(x)), a=conv(), p=nn.AdaptiveAvgPool2d((None, 2))),
        {"p"},
    ),
    "mean from the end, dimensions kept": (
        lambda: Net(lambda n, x: n.b(n.a(x).mean((-1, -2), keepdim=True)), a=conv(), b=conv(8, 4, 1)),
        set(),
    ),
    "mean, then ReLU6": (
        lambda: Net(lambda n, x: n.b(F.relu6(n.a(x).mean((2, 3)))), a=conv(), b=nn.Linear(8, 4)),
        set(),
    ),
    "mean over one of two": (lambda: Net(lambda n, x: n.a(x).mean(3), a=conv()), {"mean"}),
    # Add and sub.
    "one operand twice": (lambda: Net(lambda n, x: n.b(n.a(x) + n.a(x)), a=conv(), b=conv(8, 4)), set()),
    "in place": (lambda: Net(in_place, a=conv(), b=conv(), c=conv()), set()),
    "sub with alpha -1": (lambda: Net(lambda n, x: torch.sub(n.a(x), n.b(x), alpha=-1), a=conv(), b=conv()), set()),
    "sub with alpha 2": (lambda: Net(lambda n, x: torch.sub(n.a(x), n.b(x), alpha=2), a=conv(), b=conv()), {"sub"}),
    "add with broadcasting": (
        lambda: Net(lambda n, x: n.b(n.a(x) + n.a(x).mean((2, 3), keepdim=True)), a=conv(), b=conv(8, 4)),
        {"add"},
    ),
    "add of a number": (lambda: Net(lambda n, x: n.b(n.a(x) + 1.5), a=conv(), b=conv(8, 4)), {"add"}),
    "difference from a number": (lambda: Net(lambda n, x: n.b(1 - n.a(x)), a=conv(), b=conv(8, 4)), {"rsub"}),
    # What moves values.
    "cat along the batch": (
        lambda: Net(lambda n, x: n.b(torch.cat([n.a(x), n.c(x)])), a=conv(), b=conv(8, 4), c=conv()),
        set(),
    ),
    "cat counted from the end, with the input": (
        lambda: Net(lambda n, x: n.b(torch.cat([n.a(x), x], -3)), a=conv(padding=1), b=conv(11, 4)),
        set(),
    ),
    "cat of one tensor twice": (lambda: Net(lambda n, x: n.a(torch.cat([x, x], 1)), a=conv(6)), set()),
    "view": (
        lambda: Net(lambda n, x: n.b(n.a(x.contiguous()).view(x.size(0), -1)), a=conv(out=4), b=nn.Linear(252, 4)),
        set(),
    ),
    "pad with zeros": (
        lambda: Net(lambda n, x: n.b(F.pad(n.a(F.pad(x, (1, 2, 0, 1))), (1, 0, -1, 2))), a=conv(), b=conv(8, 4)),
        set(),
    ),
    "pad with ones": (lambda: Net(lambda n, x: n.b(F.pad(n.a(x), (1, 1), value=1.0)), a=conv(), b=conv(8, 4)), {"pad"}),
    "split and permute": (
        lambda: Net(lambda n, x: torch.cat(n.a(x).split([3, 5], 1)[::-1], 1).permute(0, 2, 3, 1), a=conv()),
        set(),
    ),
    # Activations on their own.
    "clamp from below": (lambda: Net(lambda n, x: n.a(x).clamp(min=0), a=conv()), set()),
    "clamp from above": (lambda: Net(lambda n, x: n.a(x).clamp(max=0), a=conv()), {"clamp"}),
    "clamp both": (lambda: Net(lambda n, x: F.max_pool2d(n.a(x), 2).clamp(0, 6), a=conv()), set()),
    # Inputs, outputs and float parts.
    "nothing but the input": (lambda: Net(lambda n, x: x), set()),
    "input, intermediate and result": (lambda: Net(lambda n, x: (x, n.a(x), F.relu(n.a(x))), a=conv()), set()),
    "pooled input": (lambda: Net(lambda n, x: n.a(F.avg_pool2d(F.max_pool2d(x, 2), 2)), a=conv(kernel=1)), set()),
    "float part over slices": (lambda: Net(lambda n, x: torch.sigmoid(n.a(x)[:, 1:6, 1:, 2:]), a=conv()), {"sigmoid"}),
    "float parts over chunks": (lambda: Net(chunks, a=conv(), b=conv(4, 4)), {"silu", "sigmoid"}),
    "float part at the end": (lambda: Net(lambda n, x: F.gelu(n.a(x)), a=conv()), {"gelu"}),
    "a cast called as a method": (lambda: Net(lambda n, x: n.a(x.double().float()), a=conv()), {"to_1", "to_2"}),
}


def image(batch: int) -> tuple[tuple[Tensor, ...], dict]:
    return (torch.randn(batch, 3, 9, 11),), {}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_keeps_its_values_and_bits(name):
    torch.manual_seed(0)
    make, in_float = FORMS[name]
    model = make()
    (x,), _ = image(2)
    qat = octet.prepare(model, (x,)).eval()
    torch.testing.assert_close(qat(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    if list(qat.parameters()):
        train(qat, image, steps=2)
    else:
        qat.train()(x)
    int8 = octet.convert(qat.eval())
    assert {row.name for row in int8.rows if not row.int8} == in_float
    for batch in (1, 7):
        (x,), _ = image(batch)
        for layout in (torch.contiguous_format, torch.channels_last):
            with torch.no_grad():
                assert equal_bits(qat(x.contiguous(memory_format=layout)), int8(x.contiguous(memory_format=layout)))


def small() -> Net:
    return Net(lambda n, x: n.c(F.relu(n.bn(n.a(x))).mean((2, 3))), a=conv(), bn=nn.BatchNorm2d(8), c=nn.Linear(8, 4))


def test_a_max_pool_left_float_is_one_of_float_values():
    model = nn.Sequential(conv(), nn.MaxPool2d(2, padding=1), conv(8, 4))
    qat = octet.prepare(model, image(2)[0], octet.Recipe(overrides={nn.MaxPool2d: octet.Float}))
    train(qat, image, steps=2)
    int8 = octet.convert(qat.eval())
    seen = []
    int8.get_submodule("1").register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    (x,), _ = image(3)
    with torch.no_grad():
        assert equal_bits(qat(x), int8(x))
    assert seen == [torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_model_keeps_its_grids_in_float32(dtype):
    qat = octet.prepare(small(), image(2)[0])
    train(qat, image, steps=2)
    scales = {key: value.clone() for key, value in qat.state_dict().items() if key.startswith("octet.")}
    qat.to(dtype).eval()
    assert all(torch.equal(qat.state_dict()[key], value) for key, value in scales.items())
    x = image(3)[0][0].to(dtype)
    with torch.no_grad():
        assert equal_bits(qat(x).float(), octet.convert(qat)(x))


def test_a_cast_leaves_an_int8_model_as_it_is():
    qat = octet.prepare(small(), image(2)[0])
    train(qat, image, steps=2)
    int8 = octet.convert(qat.eval())
    (x,), _ = image(3)
    before = int8(x)
    assert equal_bits(int8.half()(x), before) and equal_bits(int8.double()(x), before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_inputs_of_other_types_are_cast_by_the_model(dtype):
    def inputs(batch: int) -> tuple[tuple[Tensor, ...], dict]:
        return (torch.randint(0, 255, (batch, 3, 9, 11)).to(dtype),), {}

    model = Net(lambda n, x: n.a(x.to(torch.float32) / 255), a=conv())
    qat = octet.prepare(model, inputs(2)[0])
    train(qat, inputs, steps=2)
    (x,), _ = inputs(5)
    with torch.no_grad():
        assert equal_bits(qat.eval()(x), octet.convert(qat)(x))


def test_a_pool_by_hand_takes_no_activation():
    with pytest.raises(TypeError, match="activation"):
        octet.nn.AvgPool2d(2, activation=octet.nn.Activation.RELU)


def test_an_empty_batch_gives_an_empty_result():
    qat = octet.prepare(small(), image(2)[0])
    train(qat, image, steps=2)
    (x,), _ = image(0)
    with torch.no_grad():
        assert qat.eval()(x).shape == octet.convert(qat)(x).shape == (0, 4)
