"""The fused training path of conv_block against the composition of plain ops, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import octet  # noqa: F401  (registers the ops)

ops = torch.ops.octet
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ACTIVATIONS = {0: lambda v: v, 1: F.relu, 2: F.relu6}
LAYOUTS = {1: [torch.contiguous_format], 2: [torch.contiguous_format, torch.channels_last], 3: [torch.channels_last_3d]}


class Block:
    """One random block: parameters, grids and an input that lies on its grid."""

    def __init__(self, seed: int, *, dims: int = 2, layout: torch.memory_format = torch.contiguous_format) -> None:
        g = torch.Generator().manual_seed(seed)

        def pick(*choices: int) -> int:
            return choices[int(torch.randint(len(choices), (1,), generator=g))]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        self.groups = pick(1, 1, 2)
        inputs, outputs = self.groups * pick(3, 8, 16), self.groups * pick(1, 5, 16, 33)
        self.kernel, self.stride = pick(1, 3), pick(1, 2)
        self.padding, self.dilation, self.dims = pick(0, 1), pick(1, 2), dims
        self.activation = pick(0, 1, 2)
        size = pick(7, 8, 12)
        self.input = (torch.tensor(0.03), torch.tensor(pick(0, 100), dtype=torch.int32), 0, 255)
        zero = 0 if self.activation else 131
        self.output = (torch.tensor(0.013), torch.tensor(zero, dtype=torch.int32), 0, 255)
        x = ops.fake_quantize_per_tensor(2 * normal(pick(2, 5), inputs, *[size] * dims), *self.input)
        self.x = x.contiguous(memory_format=layout)
        weight = normal(outputs, inputs // self.groups, *[self.kernel] * dims)
        self.weight = weight.contiguous(memory_format=layout)
        self.bias = normal(outputs) if pick(0, 1) else None
        self.gamma, self.beta = normal(outputs), normal(outputs)
        for t in self.tensors():
            t.requires_grad_()

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight, self.bias, self.gamma, self.beta) if t is not None]

    def arguments(self, low_memory: bool = False) -> tuple:
        conv = ([self.stride], [self.padding], [self.dilation], self.groups)
        running = (torch.zeros_like(self.gamma), torch.ones_like(self.gamma))
        bn = (self.gamma, self.beta, *running, 1e-5)
        return (
            self.x,
            self.weight,
            self.bias,
            *bn,
            *conv,
            self.activation,
            8,
            True,
            *self.input,
            *self.output,
            True,
            True,
            True,
            low_memory,
        )

    def run(self, low_memory: bool = False) -> tuple[Tensor, ...]:
        return ops.conv_block(*self.arguments(low_memory))

    def convolution(self) -> Tensor:
        scale = self.weight.detach().abs().flatten(1).amax(1) / 127
        zero = torch.zeros_like(scale, dtype=torch.int32)
        weight = ops.fake_quantize_per_channel(self.weight, scale, zero, 0, -127, 127)
        conv = CONVS[self.dims]
        return conv(self.x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def reference(self) -> tuple[Tensor, Tensor]:
        """(output, the same before its grid) by plain ops.

        Batch norm in float64: torch's own in float32 is up to 0.006 steps off.
        """
        y = F.batch_norm(
            self.convolution().double(), None, None, self.gamma.double(), self.beta.double(), True, 0.0, 1e-5
        )
        y = ACTIVATIONS[self.activation](y)
        return ops.fake_quantize_per_tensor(y.float(), *self.output), y


def blocks() -> list:
    return [
        pytest.param(d, f, s, id=f"{d}d-{str(f)[6:]}-{s}") for d, fs in LAYOUTS.items() for f in fs for s in range(8)
    ]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("dims", "layout", "seed"), blocks())
def test_equals_the_composition(dims: int, layout: torch.memory_format, seed: int, low_memory: bool) -> None:
    block = Block(seed, dims=dims, layout=layout)
    y, low, high, mean, var, _ = block.run(low_memory)
    expected, before = block.reference()
    scale, zero = block.output[0], block.output[1]
    steps = before / scale
    codes = ((y - expected) / scale).round().abs()
    assert codes.max() <= 1
    distance_to_tie = ((steps - steps.floor()) - 0.5).abs()
    assert (distance_to_tie[codes > 0] < 1e-4).all()
    torch.testing.assert_close(low, before.min().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(high, before.max().float(), rtol=1e-5, atol=1e-5)
    sums = block.convolution().transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(mean.double(), sums.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), sums.var(1, unbiased=False), rtol=1e-5, atol=1e-6)
    # Next to a clamp's edge rounding may change the straight-through mask: such elements get no gradient.
    edge = torch.zeros_like(y, dtype=torch.bool)
    for value in (0.0, 6.0, (255.5 - zero) * scale, (-0.5 - zero) * scale):
        edge |= (before - value).abs() < 1e-4
    grad = torch.randn_like(y).masked_fill(edge, 0)
    smooth = [t for t in block.tensors() if t is not block.bias]
    for ours, theirs in zip(
        torch.autograd.grad(y, smooth, grad), torch.autograd.grad(expected, smooth, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * (1 + theirs.abs().max().item()))


def test_a_bias_before_batch_norm_has_no_gradient() -> None:
    """Batch norm takes the mean out again: what remains is rounding."""
    block = next(b for b in map(Block, range(99)) if b.bias is not None)
    y = block.run()[0]
    assert torch.autograd.grad(y, block.bias, torch.randn_like(y))[0].abs().max() < 1e-3


def test_low_memory_gives_the_same_bits() -> None:
    for seed in range(8):
        block = Block(seed)
        grad = torch.randn_like(block.run()[0])
        usual = torch.autograd.grad(block.run()[0], block.tensors(), grad)
        lean = torch.autograd.grad(block.run(low_memory=True)[0], block.tensors(), grad)
        assert all(torch.equal(a, b) for a, b in zip(usual, lean, strict=True))


def test_integer_sums_are_the_convolution() -> None:
    for seed in range(8):
        block = Block(seed)
        codes, scale, _ = ops._input_codes(block.x.detach(), *block.input)
        conv = (*([v, v] for v in (block.stride, block.padding, block.dilation)), block.groups)
        sums, mean, var, low, high = ops._conv_sums(
            codes, scale, block.input[1], None, None, block.weight.detach(), 8, True, *conv
        )
        block.bias = None
        expected = block.convolution().detach()
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)
        by_channel = sums.transpose(0, 1).flatten(1)
        assert torch.equal(low, by_channel.amin(1)) and torch.equal(high, by_channel.amax(1))
        torch.testing.assert_close(mean.double(), by_channel.double().mean(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(var.double(), by_channel.double().var(1, unbiased=False), rtol=1e-5, atol=1e-6)


def test_input_beside_the_grid_is_taken_as_it_is() -> None:
    """What dropout leaves: no code says it, and beyond the grid's ends it must not be clamped."""
    for seed in range(8):
        block = Block(seed)
        block.x = (block.x.detach() * 2 * (torch.rand_like(block.x) < 0.5)).requires_grad_()
        y, _, _, mean, *_ = block.run()
        expected, before = block.reference()
        codes = ((y - expected) / block.output[0]).round().abs()
        steps = before / block.output[0]
        assert codes.max() <= 1 and (((steps - steps.floor()) - 0.5).abs()[codes > 0] < 1e-4).all()
        sums = block.convolution().transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean, sums.mean(1), rtol=1e-4, atol=1e-4)


def test_codes_travel_with_the_values() -> None:
    """A block's output brings its codes, until somebody writes to it."""
    block = Block(0)
    y = block.run()[0]
    assert torch.equal(ops._input_codes(y, *block.output)[0], ops.quantize_per_tensor(y, *block.output, torch.uint8))
    other = (block.output[0] * 2, *block.output[1:])
    assert torch.equal(ops._input_codes(y, *other)[0], ops.quantize_per_tensor(y, *other, torch.uint8))
    with torch.no_grad():
        y.mul_(0.5)
    assert torch.equal(ops._input_codes(y, *block.output)[0], ops.quantize_per_tensor(y, *block.output, torch.uint8))


def saved_bytes(run) -> int:
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        keep = run()
    del keep
    return sum(seen.values())


def test_saves_codes_bits_and_at_most_the_convolution() -> None:
    block = Block(0)
    x = torch.randn(16, 32, 28, 28)
    block.input = (torch.tensor(0.03), torch.tensor(100, dtype=torch.int32), 0, 255)
    block.x = ops.fake_quantize_per_tensor(x, *block.input).requires_grad_()
    block.weight, block.bias = torch.randn(32, 32, 3, 3, requires_grad=True), None
    block.gamma, block.beta = torch.ones(32, requires_grad=True), torch.zeros(32, requires_grad=True)
    block.kernel, block.stride, block.padding, block.dilation, block.groups = 3, 1, 1, 1, 1
    parameters = block.weight.nbytes + 4 * block.gamma.nbytes
    n = x.numel()
    assert saved_bytes(block.run) <= 5.2 * n + parameters
    assert saved_bytes(lambda: block.run(low_memory=True)) <= 1.2 * n + parameters


@pytest.mark.parametrize("layout", LAYOUTS[2])
@pytest.mark.parametrize("norm", [False, True])
def test_fixed_statistics_have_the_gradient_of_the_composition(norm: bool, layout: torch.memory_format) -> None:
    """Running statistics or no batch norm: the value is the integer path's, the gradient that of plain operations."""
    for seed in range(8):
        block = Block(seed, layout=layout)
        arguments = list(block.arguments())
        outputs = block.gamma.numel()
        arguments[5:7] = torch.linspace(-1, 1, outputs), torch.linspace(0.5, 2, outputs)
        arguments[3:7] = arguments[3:7] if norm else [None] * 4
        arguments[8:11] = [2 * v for v in arguments[8:11]]  # the integer path wants one entry per dimension
        arguments[-3:-1] = False, True  # batch_stats, observe
        leaves = (
            block.tensors() if norm else [t for t in block.tensors() if t is not block.gamma and t is not block.beta]
        )
        y, low, high, *rest = ops.conv_block(*arguments)
        before = block.convolution()
        if norm:
            before = F.batch_norm(before, *arguments[5:7], block.gamma, block.beta, False, 0.0, 1e-5)
        before = ACTIVATIONS[block.activation](before)
        expected = ops.fake_quantize_per_tensor(before, *block.output)
        assert ((y - expected) / block.output[0]).abs().max() < 1.001
        torch.testing.assert_close(torch.stack([low, high]), torch.stack(before.aminmax()), rtol=1e-5, atol=1e-4)
        assert all(t.numel() == 0 for t in rest)
        scale, zero = block.output[:2]
        edge = torch.zeros_like(y, dtype=torch.bool)
        for value in (0.0, 6.0, (255.5 - zero) * scale, (-0.5 - zero) * scale):
            edge |= (before - value).abs() < 1e-4
        grad = torch.randn_like(y).masked_fill(edge, 0)
        theirs = torch.autograd.grad(expected, leaves, grad)
        for ours, wanted in zip(torch.autograd.grad(y, leaves, grad), theirs, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * (1 + wanted.abs().max().item()))


def test_fixed_statistics_have_the_bits_of_evaluation() -> None:
    """Also where gamma is 0, tiny or negative."""
    for seed in range(8):
        block = Block(seed)
        with torch.no_grad():
            block.gamma[::3], block.gamma[1::3] = 0, block.gamma[1::3] * 1e-6
        arguments = list(block.arguments())
        arguments[8:11] = [2 * v for v in arguments[8:11]]
        arguments[-3:-1] = False, False  # batch_stats, observe
        y = ops.conv_block(*arguments)[0]
        with torch.no_grad():
            expected = ops.conv_block(*arguments)[0]
        assert y.requires_grad and torch.equal(y, expected)
        gradients = torch.autograd.grad(y, [block.gamma, block.weight], torch.ones_like(y))
        assert all(g.isfinite().all() for g in gradients)


def test_without_batch_norm_keeps_codes_and_bits() -> None:
    block = Block(0)
    arguments = list(block.arguments())
    arguments[3:7] = [None] * 4
    arguments[8:11] = [2 * v for v in arguments[8:11]]
    arguments[-3] = False  # batch_stats
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ops.conv_block(*arguments)[0]
    values = [t for t in kept if t.numel() > block.gamma.numel() and t.data_ptr() != block.weight.data_ptr()]
    assert sorted(t.nbytes for t in values) == sorted([block.x.numel(), (y.numel() + 15) // 16 * 2])


def test_backward_uses_the_grids_of_its_forward() -> None:
    block = Block(3)
    y = block.run()[0]
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, block.weight, grad, retain_graph=True)[0]
    block.input[0].mul_(3)  # what committing observed ranges does between forward and backward
    block.output[0].mul_(3)
    assert torch.equal(torch.autograd.grad(y, block.weight, grad)[0], expected)


def test_gamma_zero_trains() -> None:
    block = Block(4)
    with torch.no_grad():
        block.gamma.zero_()
    y = block.run()[0]
    grads = torch.autograd.grad(y, block.tensors(), torch.randn_like(y))
    assert torch.isfinite(y).all() and all(torch.isfinite(g).all() for g in grads)


def test_a_diverged_input_shows() -> None:
    block = Block(5)
    with torch.no_grad():
        block.x[0, 0] = torch.nan
    y, low, high, mean, *_ = block.run()
    assert y.isnan().any() and low.isnan() and high.isnan() and mean.isnan().any()


def test_one_value_per_channel_is_refused() -> None:
    block = Block(6)
    block.x = torch.zeros(1, block.x.shape[1], 3, 3)
    block.weight = torch.zeros(4, block.weight.shape[1], 3, 3)
    block.bias, block.gamma, block.beta = None, torch.ones(4), torch.zeros(4)
    block.stride, block.padding, block.dilation = 1, 0, 1
    with pytest.raises(RuntimeError, match="conv_block: batch statistics need more than one value per channel"):
        block.run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_input(dtype: torch.dtype) -> None:
    block = Block(7)
    x = block.x.detach().to(dtype).requires_grad_()
    block.x = x.float()
    expected = block.run()[0]
    grad = torch.randn_like(expected)
    block.x = x
    y = block.run()[0]
    assert torch.equal(y, expected) and y.dtype == torch.float32
    assert torch.autograd.grad(y, x, grad)[0].dtype == dtype


def test_autocast_changes_the_convolution_only() -> None:
    block = Block(0)
    exact = block.run()[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = block.run()[0]
    assert y.dtype == torch.float32
    codes = y / block.output[0]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert ((y - exact).abs().mean() / exact.abs().mean()) < 0.05
    grads = torch.autograd.grad(y, block.tensors(), torch.randn_like(y))
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_narrow_results_are_rounded_once() -> None:
    block = Block(1)
    codes, scale, _ = ops._input_codes(block.x.detach(), *block.input)
    expected = ops.dequantize_per_tensor(codes, scale, block.input[1]).bfloat16()
    assert torch.equal(ops._read_codes(codes, scale, block.input[1]), expected)
    sums = block.convolution().detach()
    statistics = ops._batch_statistics(sums)
    _, bits, _, _ = ops._block_tail(sums, *statistics, None, None, 1e-5, 1, *block.output, True)
    count = torch.tensor(sums.numel() // sums.size(1))
    arguments = (torch.randn_like(sums), bits, sums, *statistics[:2], count, None, 1e-5)
    wide = ops._block_tail_backward(*arguments, torch.float32, "")[0]
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(ops._block_tail_backward(*arguments, dtype, "")[0], wide.to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS[2])
def test_opcheck(layout: torch.memory_format) -> None:
    block = Block(1, layout=layout)
    x = block.x.detach()
    torch.library.opcheck(ops._input_codes.default, (x, *block.input))
    codes, scale, on_grid = ops._input_codes(x, *block.input)
    conv = (*([v, v] for v in (block.stride, block.padding, block.dilation)), block.groups)
    torch.library.opcheck(ops._read_codes.default, (codes, scale, block.input[1]))
    arguments = (codes, scale, block.input[1], x, on_grid, block.weight.detach(), 8, True, *conv)
    torch.library.opcheck(ops._conv_sums.default, arguments)
    sums = block.convolution().detach()
    torch.library.opcheck(ops._batch_statistics.default, (sums,))
    statistics = ops._batch_statistics(sums)
    tail = (sums, *statistics, block.gamma.detach(), block.beta.detach(), 1e-5, 1, *block.output, True)
    torch.library.opcheck(ops._block_tail.default, tail)
    y, bits, _, _ = ops._block_tail(*tail)
    moments = (*statistics[:2], torch.tensor(sums.numel() // sums.size(1)))
    backward = (torch.randn_like(y), bits, sums, *moments, block.gamma.detach(), 1e-5, torch.bfloat16, "")
    torch.library.opcheck(ops._block_tail_backward.default, backward)
    recomputed = (backward[0], bits, *arguments[:3], *arguments[5:], *backward[3:])
    torch.library.opcheck(ops._recomputed_tail_backward.default, recomputed)
    frozen = (backward[0], bits, sums, *statistics[:2], block.gamma.detach(), 1e-5, torch.float32)
    torch.library.opcheck(ops._frozen_tail_backward.default, frozen)
    integer = (codes, scale, block.input[1], block.weight.detach(), None, *[None] * 4, 0.0, *conv, 8, True, 1)
    torch.library.opcheck(ops._conv_integer_tail.default, (*integer, *block.output, True))
    torch.library.opcheck(ops.conv_block.default, block.arguments())


@pytest.mark.parametrize("low_memory", [False, True])
def test_compiles_without_a_break(low_memory: bool) -> None:
    block = Block(2)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        arguments = (x, weight, *block.arguments(low_memory)[2:])
        return (ops.conv_block(*arguments)[0] ** 2).sum()

    inputs = (block.x, block.weight)
    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, theirs in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
