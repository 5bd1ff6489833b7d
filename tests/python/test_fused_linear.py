"""The fused training path of linear_block against the composition of plain ops, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import octet

ops = torch.ops.octet
ACTIVATIONS = {0: lambda v: v, 1: F.relu, 2: F.relu6}


class Layer:
    """One random layer: parameters, grids and an input that lies on its grid."""

    def __init__(self, seed: int, rows: tuple[int, ...] = (12,)) -> None:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        inputs, outputs = ((3, 5), (16, 16), (33, 20), (64, 130))[seed % 4]
        self.activation = seed % 3
        self.input = (torch.tensor(0.03), torch.tensor(100 * (seed % 2), dtype=torch.int32), 0, 255)
        zero = 0 if self.activation else 131
        self.output = (torch.tensor(0.05), torch.tensor(zero, dtype=torch.int32), 0, 255)
        self.x = ops.fake_quantize_per_tensor(2 * normal(*rows, inputs), *self.input)
        self.weight = normal(outputs, inputs)
        self.bias, self.gamma, self.beta = normal(outputs), normal(outputs), normal(outputs)
        self.running = (normal(outputs), 0.5 + normal(outputs).abs())
        for t in (self.x, self.weight, self.bias, self.gamma, self.beta):
            t.requires_grad_()

    def leaves(self, norm: str) -> list[Tensor]:
        batch_norm = [] if norm == "none" else [self.gamma, self.beta]
        bias = [] if norm == "batch" else [self.bias]  # batch norm takes a bias out again
        return [self.x, self.weight, *bias, *batch_norm]

    def run(self, norm: str, low_memory: bool = False) -> tuple[Tensor, ...]:
        bn = (None,) * 4 if norm == "none" else (self.gamma, self.beta, *self.running)
        codes = (self.activation, 8, True, *self.input, *self.output)
        flags = (True, norm == "batch", True, low_memory)
        return ops.linear_block(self.x, self.weight, self.bias, *bn, 1e-5, *codes, *flags)

    def before(self, norm: str) -> Tensor:
        """What is put on the output grid, by plain ops."""
        weight = octet.ops.fake_quantize_per_channel(
            self.weight, self.weight.detach().abs().amax(1) / 127, torch.zeros(len(self.weight)).int(), 0, -127, 127
        )
        y = F.linear(self.x, weight, self.bias)
        if norm != "none":
            arguments = (t.double() for t in (*self.running, self.gamma, self.beta))
            y = F.batch_norm(y.double(), *arguments, norm == "batch", 0.0, 1e-5).float()
        return ACTIVATIONS[self.activation](y)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("norm", ["none", "fixed", "batch"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_composition(seed: int, norm: str, low_memory: bool) -> None:
    layer = Layer(seed)
    y, low, high, *_ = layer.run(norm, low_memory)
    before = layer.before(norm)
    expected = ops.fake_quantize_per_tensor(before, *layer.output)
    scale, zero = layer.output[:2]
    assert ((y - expected) / scale).abs().max() < 1.001
    torch.testing.assert_close(torch.stack([low, high]), torch.stack(before.aminmax()), rtol=1e-5, atol=1e-4)
    edge = torch.zeros_like(y, dtype=torch.bool)  # where rounding may change the straight-through mask
    for value in (0.0, 6.0, (255.5 - zero) * scale, (-0.5 - zero) * scale):
        edge |= (before - value).abs() < 1e-4
    grad = torch.randn_like(y).masked_fill(edge, 0)
    leaves = layer.leaves(norm)
    theirs = torch.autograd.grad(expected, leaves, grad)
    for ours, wanted in zip(torch.autograd.grad(y, leaves, grad), theirs, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize(
    ("rows", "norm"), [((1,), "fixed"), ((0,), "fixed"), ((7,), "none"), ((2, 3), "none"), ((2, 1, 5), "none")]
)
def test_training_has_the_bits_of_evaluation(rows: tuple[int, ...], norm: str) -> None:
    for seed in range(8):
        layer = Layer(seed, rows)
        y = layer.run(norm)[0]
        bn = (None,) * 4 if norm == "none" else (layer.gamma, layer.beta, *layer.running)
        grids = (*layer.input, *layer.output)
        with torch.no_grad():
            expected = ops.linear_block(
                layer.x, layer.weight, layer.bias, *bn, 1e-5, layer.activation, 8, True, *grids, True, False, False
            )[0]
        assert y.requires_grad and not expected.requires_grad
        assert torch.equal(y, expected)


def test_keeps_codes_and_bits() -> None:
    layer = Layer(3, (64,))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer.run("none")[0]
    values = [t for t in kept if t.numel() > len(layer.weight) and t.data_ptr() != layer.weight.data_ptr()]
    assert sorted(t.nbytes for t in values) == sorted([layer.x.numel(), (y.numel() + 15) // 16 * 2])


def test_low_memory_gives_the_same_bits() -> None:
    for seed in range(4):
        layer = Layer(seed)
        grad = torch.randn_like(layer.run("batch")[0])
        usual, lean = (
            torch.autograd.grad(layer.run("batch", m)[0], layer.leaves("batch"), grad) for m in (False, True)
        )
        assert all(torch.equal(a, b) for a, b in zip(usual, lean, strict=True))


def test_codes_travel_with_the_values() -> None:
    layer = Layer(1)
    y = layer.run("none")[0]
    assert torch.equal(ops._input_codes(y, *layer.output)[0], ops.quantize_per_tensor(y, *layer.output, torch.uint8))


def test_a_diverged_input_shows() -> None:
    layer = Layer(2)
    with torch.no_grad():
        layer.x[0, 0] = torch.nan
    for norm in ("none", "fixed", "batch"):
        y, low, high, *_ = layer.run(norm)
        assert y.isnan().any() and low.isnan() and high.isnan()


def test_one_row_of_batch_statistics_is_refused() -> None:
    with pytest.raises(RuntimeError, match="linear_block: batch statistics need more than one value per channel"):
        Layer(0, (1,)).run("batch")


def test_autocast_keeps_the_value_of_fixed_statistics() -> None:
    layer = Layer(3)
    exact = layer.run("none")[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.run("none")[0]
    assert torch.equal(y, exact)
    grads = torch.autograd.grad(y, layer.leaves("none"), torch.randn_like(y))
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_compiles_without_a_break(norm: str) -> None:
    layer = Layer(2)

    def loss() -> Tensor:
        return layer.run(norm)[0].square().sum()

    expected = torch.autograd.grad(loss(), layer.leaves(norm))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), layer.leaves(norm)), expected)
