"""The fused training path of add_block: the integer path's bits forward, the float sum's gradient backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import octet  # noqa: F401  (registers the ops)

ops = torch.ops.octet
ACTIVATIONS = {0: lambda v: v, 1: F.relu, 2: F.relu6}
UNIT = 0.0011


def grid(steps: int, zero: int) -> tuple:
    return (
        torch.tensor(steps * UNIT),
        torch.tensor(zero, dtype=torch.int32),
        torch.tensor(steps, dtype=torch.int32),
        0,
        255,
    )


A, B, OUT = grid(21, 120), grid(9, 60), grid(25, 100)


def quantized(x: Tensor, g: tuple) -> Tensor:
    return ops.fake_quantize_per_tensor(x, g[0], g[1], 0, 255)


def operands(layout: torch.memory_format = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a, b = 1.5 * torch.randn(3, 5, 7, 9), torch.randn(3, 5, 7, 9)
    a, b = quantized(a, A).contiguous(memory_format=layout), quantized(b, B)
    return a.requires_grad_(), b.requires_grad_()


def run(a: Tensor, b: Tensor, alpha: float = 1.0, activation: int = 1, observe: bool = True) -> tuple[Tensor, ...]:
    return ops.add_block(a, b, alpha, activation, *A, *B, *OUT, True, observe)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("alpha", [1.0, -1.0])
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_value_gradient_and_range(layout: torch.memory_format, alpha: float, activation: int) -> None:
    a, b = operands(layout)
    y, low, high = run(a, b, alpha, activation)
    before = ACTIVATIONS[activation](a + alpha * b)
    with torch.no_grad():
        assert torch.equal(y, run(a, b, alpha, activation, observe=False)[0])  # the integer path
    assert torch.equal(low, before.min()) and torch.equal(high, before.max())
    grad = torch.randn_like(y)
    reference = torch.autograd.grad(quantized(before, OUT), (a, b), grad)
    for ours, theirs in zip(torch.autograd.grad(y, (a, b), grad), reference, strict=True):
        assert torch.equal(ours, theirs)


def test_keeps_one_bit_per_element() -> None:
    a, b = operands()
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        run(a, b)
    assert sum(t.nbytes for t in seen) <= a.numel() / 8 + 2


def test_nan_shows() -> None:
    a, b = operands()
    with torch.no_grad():
        a[0, 0, 0, 0] = torch.nan
        b[0, 0, 0, 1] = torch.inf
    y, low, high = run(a, b)
    assert y[0, 0, 0, 0].isnan() and y.isnan().sum() == 1 and low.isnan() and high.isnan()


def test_opcheck_and_compile() -> None:
    a, b = operands(torch.channels_last)
    torch.library.opcheck(ops.add_block.default, (a, b, 1.0, 1, *A, *B, *OUT, True, True))
    torch.library.opcheck(ops._add_tail.default, (a.detach(), b.detach(), -1.0, 2, *A, *B, *OUT, True))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (run(a, b)[0] ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    expected = torch.autograd.grad(loss(a, b), (a, b))
    for ours, theirs in zip(torch.autograd.grad(compiled(a, b), (a, b)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
