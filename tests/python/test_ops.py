"""Every op against its rows in op_samples: values, layouts, dtypes, registration, scripting, compilation."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import octet.ops as ops
import op_samples as samples
from op_samples import SAMPLES, Sample, f32, i32, rand, randn

each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def copy(args: tuple) -> tuple:
    return tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, args)


def call(function, sample: Sample, args: tuple) -> list[Tensor]:
    """The op's results, or the arguments it wrote."""
    args = copy(args)
    result = function(*args)
    if sample.op.endswith("_"):
        assert result is None
        result = args[: len(sample.reference(*copy(sample.args())))]
    return tree_flatten(result)[0]


def expected(sample: Sample) -> list[Tensor]:
    return tree_flatten(sample.reference(*sample.args()))[0]


def assert_same(actual: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w, rtol=0, atol=0, equal_nan=True)


def op_of(sample: Sample):
    return getattr(ops, sample.op)


def with_tensors(args: tuple, change) -> tuple:
    return tree_map(lambda a: change(a) if isinstance(a, Tensor) else a, args)


# Generic


def test_every_op_has_samples():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("octet::")}
    public = {name for name in registered if not name.startswith("_")}
    whole_programs = {"run_network"}  # test_network.py
    assert public == set(ops.__all__) == {s.op for s in SAMPLES} | whole_programs


@each_sample
def test_reference(sample):
    actual, wanted = call(op_of(sample), sample, sample.args()), expected(sample)
    if sample.op == "update_batch_norm_":
        torch.testing.assert_close(actual, wanted)  # any order of the float operations will do
    else:
        assert_same(actual, wanted)


@each_sample
def test_non_contiguous(sample):
    def holes(t: Tensor) -> Tensor:
        return torch.stack([t, t], -1)[..., 0] if t.dim() else t

    args = with_tensors(sample.args(), holes)
    if not sample.op.endswith("_"):
        assert_same(tree_flatten(op_of(sample)(*args))[0], call(op_of(sample), sample, sample.args()))
        return
    op_of(sample)(*args)
    count = len(sample.reference(*sample.args()))
    assert_same(tree_flatten(args[:count])[0], call(op_of(sample), sample, sample.args()))


@each_sample
def test_channels_last(sample):
    images = [a for a in sample.args() if isinstance(a, Tensor) and a.dim() == 4]
    args = with_tensors(sample.args(), lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t)
    results = tree_flatten(op_of(sample)(*args))[0] if images else call(op_of(sample), sample, args)
    assert_same(results, call(op_of(sample), sample, sample.args()))
    if images and results[0].dim() == 4 and sample.op != "fold":
        assert results[0].is_contiguous(memory_format=torch.channels_last)


@each_sample
def test_empty_batch(sample):
    def empty(position: int, arg):
        return arg[:0] if position in sample.batched else arg

    args = tuple(empty(i, a) for i, a in enumerate(sample.args()))
    results = tree_flatten(op_of(sample)(*args))[0] if sample.batched else call(op_of(sample), sample, args)
    for result, full in zip(results, expected(sample), strict=True):
        batched = sample.batched and full.dim() > 0 and full.numel() > 0 and sample.op != "min_max_per_channel"
        assert result.shape == ((0, *full.shape[1:]) if batched else full.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.floats], ids=str)
def test_dtypes_meet_the_grid_in_float32(sample, dtype):
    """x in another dtype gives what its float32 value gives: fake quantization in x's dtype, the rest as ever."""
    args = [a.to(dtype) if i in sample.floats else a for i, a in enumerate(sample.args())]
    as_float = [a.float() if i in sample.floats else a for i, a in enumerate(args)]
    results, wanted = (tree_flatten(op_of(sample)(*a))[0] for a in (args, as_float))
    if "fake_quantize" in sample.op:
        assert results[0].dtype == dtype
    assert_same(
        [r.to(w.dtype) for r, w in zip(results, wanted, strict=True)],
        [w.to(r.dtype).to(w.dtype) for r, w in zip(results, wanted, strict=True)],
    )


@each_sample
def test_opcheck(sample):
    """opcheck compares without equal_nan, hence finite inputs."""
    overload = getattr(torch.ops.octet, sample.op).default
    args = with_tensors(sample.args(), lambda t: t.nan_to_num(2.0, math.inf, -math.inf))
    torch.library.opcheck(overload, args)
    if sample.floats:
        args = tuple(a.requires_grad_() if i in sample.floats else a for i, a in enumerate(args))
        torch.library.opcheck(overload, args)


@each_sample
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted(sample):
    scripted = torch.jit.script(op_of(sample))
    assert_same(call(scripted, sample, sample.args()), call(op_of(sample), sample, sample.args()))


@each_sample
def test_compiled(sample):
    torch._dynamo.reset()
    compiled = torch.compile(op_of(sample), fullgraph=True, backend="aot_eager")
    assert_same(call(compiled, sample, sample.args()), call(op_of(sample), sample, sample.args()))


def test_compiled_by_inductor():
    def step(x, scale, zero_point):
        y, low, high = ops.observe_and_fake_quantize(x * 2, scale, zero_point, 0, 255)
        return (y * y).sum(), low, high

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        x = randn(2, 3, 5, 4).requires_grad_()
        loss, low, high = function(x, *samples.NARROW[:2])
        loss.backward()
        gradients.append([x.grad, low, high])
    assert_same(*gradients)


def test_doctests():
    results = doctest.testmod(ops)
    assert results.attempted > 50 and results.failed == 0


# Fake quantization


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_straight_through_gradient(dtype):
    """1 where qmin <= round(x / s) + z <= qmax, else 0: at the edges, outside, for infinities and NaN."""
    x = torch.tensor([-1.25, -1.0, -1.26, 0.0, 1.75, 1.74, 2.0, math.inf, -math.inf, math.nan], dtype=dtype)
    x.requires_grad_()
    y = ops.fake_quantize_per_tensor(x, f32(0.5), i32(2), 0, 5)
    y.backward(torch.full_like(y, 3.0))
    inside = torch.tensor([1, 1, 0, 1, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
    assert x.grad.dtype == dtype
    # -1.25 / 0.5 = -2.5 rounds to -2, inside; 1.75 / 0.5 = 3.5 rounds to 4, outside.
    wanted = (x.detach().float() / 0.5).round()
    assert torch.equal(inside[:7], ((wanted + 2 >= 0) & (wanted + 2 <= 5))[:7])
    assert torch.equal(x.grad, torch.where(inside, 3.0, 0.0).to(dtype))


def test_gradient_outlives_a_changed_grid():
    """commit_ranges_ writes the grid between forward and backward."""
    x, scale = randn(5).requires_grad_(), f32(0.1)
    y = ops.fake_quantize_per_tensor(x, scale, i32(128), 0, 255)
    scale.fill_(100.0)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(5))


def test_gradient_of_per_channel_and_strided_input():
    base = randn(4, 6, 3).requires_grad_()
    x = base.transpose(0, 1)[::2]
    y = ops.fake_quantize_per_channel(x, torch.tensor([0.001, 1.0, 0.01]), i32([5, 0, -3]), 0, -8, 7)
    y.sum().backward()
    q = (x.detach() / torch.tensor([0.001, 1.0, 0.01]).view(3, 1, 1)).round() + i32([5, 0, -3]).view(3, 1, 1)
    wanted = torch.zeros(6, 4, 3)
    wanted[::2] = ((q >= -8) & (q <= 7)).float()
    assert 0 < wanted.sum() < 36
    assert torch.equal(base.grad, wanted.transpose(0, 1))


def test_no_gradient_for_the_range():
    x = randn(4).requires_grad_()
    _, low, high = ops.observe_and_fake_quantize(x, *samples.WIDE)
    assert not low.requires_grad and not high.requires_grad
    assert not any(t.requires_grad for t in ops.min_max(x))


def test_autocast_gives_float32():
    x = randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.fake_quantize_per_tensor(x.bfloat16(), *samples.NARROW)
        z = ops.observe_and_fake_quantize(x.bfloat16(), *samples.NARROW)[0]
    assert y.dtype == z.dtype == torch.float32
    assert torch.equal(y, ops.fake_quantize_per_tensor(x.bfloat16().float(), *samples.NARROW))


def test_double_backward():
    x = randn(40).requires_grad_()
    y = ops.fake_quantize_per_tensor(x, *samples.NARROW)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = (x.detach() / samples.NARROW[0]).round().add(120).clamp(0, 255) == (
        x.detach() / samples.NARROW[0]
    ).round() + 120
    assert 0 < inside.sum() < 40
    torch.testing.assert_close(second, torch.where(inside, 6 * y.detach(), 0.0))


@pytest.mark.parametrize("keep_pass", [False, True])
@pytest.mark.parametrize("observe", [False, True])
def test_internal_ops(keep_pass, observe):
    fake_quantize = torch.ops.octet._fake_quantize_forward.default
    for x in (randn(4, 3), randn(2, 3, 5, 4).to(memory_format=torch.channels_last), randn(6, 5).t()[::2]):
        args = (x, *samples.NARROW[:2], None, 0, 255, keep_pass, observe)
        torch.library.opcheck(fake_quantize, args)
        y, bits, *_ = fake_quantize(*args)
        if keep_pass:
            torch.library.opcheck(torch.ops.octet._fake_quantize_backward.default, (randn(*x.shape), bits, y.stride()))


def on_other_device(name: str, *args):
    """The implementation by plain torch operations that devices without kernels get, here on CPU tensors."""
    return getattr(torch.ops.octet, name).default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_other_devices_give_the_same_bits(layout, axis, observe):
    x = torch.cat([randn(2, 3, 5, 2), samples.special_values()[:10].expand(2, 3, 10).reshape(2, 3, 5, 2)], 3)
    x = {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": x.transpose(0, 3)[::2],
    }[layout]
    grid = samples.NARROW[:2] if axis is None else samples.channel_grids(3)
    args = (x, *grid, axis, 0, 255, True, observe)
    wanted = torch.ops.octet._fake_quantize_forward(*args)
    assert_same(on_other_device("_fake_quantize_forward", *args), wanted)
    y, bits = wanted[:2]
    backward = (randn(*y.shape, seed=3), bits, y.stride())
    assert_same(
        [on_other_device("_fake_quantize_backward", *backward)], [torch.ops.octet._fake_quantize_backward(*backward)]
    )


@each_sample
def test_other_devices_give_the_same_results(sample):
    """Ops with an implementation of their own for devices without kernels."""
    name = f"octet::{sample.op}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            name, "CompositeImplicitAutograd"
        )  # made of ops that have
        return
    assert_same(call(lambda *args: on_other_device(sample.op, *args), sample, sample.args()), expected(sample))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(min_value=2.0**-20, max_value=2.0**20, width=32)


@st.composite
def grids(draw) -> tuple[Tensor, Tensor, int, int]:
    qmin, qmax = draw(st.sampled_from([(0, 255), (1, 255), (-127, 127), (0, 15), (-1, 1)]))
    return f32(draw(scales)), i32(draw(st.integers(qmin, qmax))), qmin, qmax


@settings(deadline=None, max_examples=200)
@given(st.lists(finite, min_size=1, max_size=20), grids())
def test_fake_quantize_properties(values, grid):
    x = torch.tensor(sorted(values))
    y = ops.fake_quantize_per_tensor(x, *grid)
    scale, zero_point, qmin, qmax = grid
    dtype = torch.int8 if qmin < 0 else torch.uint8
    codes = ops.quantize_per_tensor(x, *grid, dtype)
    assert torch.equal(y, ops.dequantize_per_tensor(codes, scale, zero_point))
    assert torch.equal(y, ops.fake_quantize_per_tensor(y, *grid))  # idempotent
    assert bool((y[1:] >= y[:-1]).all())  # monotone
    assert ops.fake_quantize_per_tensor(torch.zeros(1), *grid).item() == 0.0  # zero is exact
    low, high = scale * (qmin - zero_point), scale * (qmax - zero_point)
    inside = (x >= low) & (x <= high)
    error = (y.double() - x.double()).abs()[inside]
    assert bool((error <= scale.double() * 0.5 * (1 + 1e-6) + x[inside].double().abs() * 1e-6).all())
    axis_grid = (scale.expand(3), zero_point.expand(3))
    rows = x.expand(3, -1)
    assert torch.equal(ops.fake_quantize_per_channel(rows, *axis_grid, 0, qmin, qmax), y.expand(3, -1))


# Observation


@settings(deadline=None, max_examples=100)
@given(finite, finite, st.booleans())
def test_every_finite_range_gives_a_usable_grid(a, b, symmetric):
    qmin, qmax = (1, 255) if symmetric else (0, 255)
    scale, zero_point = ops.calculate_qparams(f32(min(a, b)), f32(max(a, b)), qmin, qmax, symmetric)
    assert 0 < scale.item() < math.inf
    assert qmin <= zero_point.item() <= qmax


def test_empty_and_diverged_ranges():
    assert ops.calculate_qparams(f32(math.inf), f32(-math.inf), 0, 255, False)[0].item() == 1.0
    assert ops.calculate_qparams(f32(math.nan), f32(1.0), 0, 255, False)[0].isnan()
    assert [t.tolist() for t in ops.min_max_per_channel(torch.empty(0, 2), 1)] == [[math.inf] * 2, [-math.inf] * 2]


def test_commit_without_observation_changes_nothing():
    args = samples.commit_args()
    for low, high in zip(args[0], args[1], strict=True):
        low.fill_(math.inf)
        high.fill_(-math.inf)
    before = copy(args)
    ops.commit_ranges_(*args)
    assert_same(tree_flatten(args[:8])[0], tree_flatten(before[:8])[0])


# INT8 operators


def test_packed_weights_follow_the_weight():
    """A changed weight, a view of another place, a new weight at an old address: never the old packing."""
    args = list(samples.conv_args(2, 1))
    conv = lambda: ops.int8_conv(*args)  # noqa: E731
    reference = lambda: samples.ref_int8_conv(*args)  # noqa: E731
    assert torch.equal(conv(), reference())
    args[1].neg_()
    assert torch.equal(conv(), reference())
    for seed in range(20):
        args[1] = samples.codes(8, 4, 3, 3, seed=seed, low=-127, high=128, dtype=torch.int8)
        assert torch.equal(conv(), reference())
    whole = samples.codes(16, 4, 3, 3, seed=30, low=-127, high=128, dtype=torch.int8)
    for part in (whole[:8], whole[8:], whole[::2]):
        args[1] = part
        assert torch.equal(conv(), reference())


def test_inference_tensors_as_weights():
    args = list(samples.conv_args(2, 1))
    with torch.inference_mode():
        for _ in range(20):  # new weights at old addresses
            args[1] = args[1].clone().neg_()
            assert torch.equal(ops.int8_conv(*args), samples.ref_int8_conv(*args))
            args[1].neg_()
            assert torch.equal(ops.int8_conv(*args), samples.ref_int8_conv(*args))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_random_convolutions(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    rank, groups, kernel, stride, dilation = draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 2)
    padding, per_group, out = draw(0, 2), draw(1, 9), draw(1, 5)
    size = draw(max(1, dilation * (kernel - 1) + 1 - 2 * padding), 8)
    seed = draw(0, 1000)
    x = samples.codes(draw(1, 2), groups * per_group, *[size] * rank, seed=seed)
    weight = samples.codes(groups * out, per_group, *[kernel] * rank, seed=seed, low=-127, high=128, dtype=torch.int8)
    bias = samples.codes(groups * out, seed=seed, low=-(10**6), high=10**6, dtype=torch.int32)
    args = (x, weight, bias, rand(groups * out, seed=seed) * 0.02, [stride] * rank, [padding] * rank, [dilation] * rank)
    rest = (groups, draw(0, 255), draw(0, 255), 0, 255)
    assert torch.equal(ops.int8_conv(*args, *rest), samples.ref_int8_conv(*args, *rest))


# Blocks

FLAGS = [(fake, batch, observe) for fake in (False, True) for batch in (False, True) for observe in (False, True)]


def grid_of(block: str, args: tuple) -> tuple:
    """The output grid: the four arguments before the flags."""
    return args[-7:-3]


def block_call(kind: str, flags: tuple) -> tuple[str, tuple]:
    """A block and its arguments, x on its grid as in a model."""
    block, args = {
        "conv": ("conv_block", lambda: samples.conv_block_args(2, 1, True, flags)),
        "conv1d": ("conv_block", lambda: samples.conv_block_args(1, 2, True, flags)),
        "linear": ("linear_block", lambda: samples.linear_block_args(flags, norm=True)),
        "batch norm": ("batch_norm_block", lambda: samples.batch_norm_block_args(flags)),
    }[kind]
    x, *rest = args()
    return block, (ops.fake_quantize_per_tensor(x, *samples.WIDE), *rest)


BLOCKS = ["conv", "conv1d", "linear", "batch norm"]
LEAVES = {"conv_block": 5, "linear_block": 5, "batch_norm_block": 3}  # arguments that may have a gradient


def plain(block: str, args: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """The float composition by plain torch: (result before the output's grid, batch mean, batch variance)."""
    fake, batch = args[-3], args[-2]
    if block == "batch_norm_block":
        y, norm, activation = args[0], args[1:6], args[6]
    else:
        x, weight, bias, *norm = args[:8]
        activation, bits, channels = args[-14:-11]
        if fake:
            top = 2 ** (bits - 1) - 1
            dims = tuple(range(1, weight.dim()))
            largest = weight.detach().abs().amax(dims, keepdim=True) if channels else weight.detach().abs().max()
            step = largest / top
            weight = weight + ((weight / step).round() * step - weight).detach()
        if block == "conv_block":
            convolve = {3: torch.conv1d, 4: torch.conv2d}[weight.dim()]
            y = convolve(x, weight, bias, *args[8:12])
        else:
            y = torch.nn.functional.linear(x, weight, bias)
    gamma, beta, mean, var, eps = norm
    dims = [d for d in range(y.dim()) if d != 1]
    batch_var, batch_mean = torch.var_mean(y.detach(), dims, correction=0)
    running = (None, None) if batch else (mean, var)
    y = torch.nn.functional.batch_norm(y, *running, gamma, beta, batch, 0.0, eps)
    return (y, y.relu(), y.clamp(0, 6))[activation], batch_mean, batch_var


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_is_its_composition(kind, flags):
    block, args = block_call(kind, flags)
    fake, batch, observe = flags
    y, low, high, mean, var, count = getattr(ops, block)(*args)
    wanted, batch_mean, batch_var = plain(block, args)
    if fake:
        # The same codes but next to rounding ties; the integer path also rounds biases and multipliers.
        scale = args[-7]
        steps = (y - ops.fake_quantize_per_tensor(wanted, *grid_of(block, args))) / scale
        assert steps.abs().max() <= 1.001
        assert (steps.abs() > 0.5).float().mean() <= (0.01 if batch else 0.12)
    else:
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    if observe:
        torch.testing.assert_close(torch.stack([low, high]), torch.stack(wanted.aminmax()), rtol=1e-5, atol=1e-5)
    else:
        assert (low.item(), high.item()) == (math.inf, -math.inf)
    if batch:
        torch.testing.assert_close((mean, var), (batch_mean, batch_var), rtol=1e-5, atol=1e-5)
        assert int(count) == y.numel() // y.size(1)
    else:
        assert mean.numel() == var.numel() == count.numel() == 0


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_opcheck(kind, flags):
    """With gradients; without them the samples went through it."""
    block, args = block_call(kind, flags)
    differentiable = tuple(
        a.requires_grad_() if isinstance(a, Tensor) and i < LEAVES[block] else a for i, a in enumerate(args)
    )
    torch.library.opcheck(getattr(torch.ops.octet, block).default, differentiable)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_gradients_are_the_compositions(kind, batch):
    """With the output's grid wide enough never to clamp, gradients ignore rounding altogether."""
    gradients = []
    for run in ("block", "plain"):
        block, args = block_call(kind, (True, batch, False))
        args = (*args[:-7], f32(0.5), i32(128), 0, 255, *args[-3:])
        leaves = [a.requires_grad_() for i, a in enumerate(args) if isinstance(a, Tensor) and i < 3]
        y = getattr(ops, block)(*args)[0] if run == "block" else plain(block, args)[0]
        (y * randn(*y.shape, seed=9)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_frozen_training_gives_the_eval_bits(kind):
    block, args = block_call(kind, (True, False, False))
    with torch.no_grad():
        evaluated = getattr(ops, block)(*args)[0]
    trained = getattr(ops, block)(*(a.requires_grad_() if i == 0 else a for i, a in enumerate(args)))[0]
    observed = getattr(ops, block)(*args[:-1], True)[0]
    assert trained.requires_grad and not evaluated.requires_grad
    assert torch.equal(trained, evaluated) and torch.equal(observed, evaluated)


@pytest.mark.parametrize("kind", BLOCKS)
def test_eval_bits_do_not_depend_on_autocast(kind):
    block, args = block_call(kind, (True, False, False))
    with torch.no_grad():
        wanted = getattr(ops, block)(*args)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(getattr(ops, block)(*args)[0], wanted)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_training_under_autocast(kind, batch):
    block, args = block_call(kind, (True, batch, True))
    args[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, low, high, *_ = getattr(ops, block)(*args)
    y.sum().backward()
    assert y.dtype == low.dtype == high.dtype == torch.float32
    scale, zero_point, qmin, qmax = grid_of(block, args)
    assert torch.equal(y, ops.fake_quantize_per_tensor(y, scale, zero_point, qmin, qmax))
    assert args[0].grad.isfinite().all()


def test_low_precision_parameters():
    """A model in bfloat16 altogether: blocks still exchange float32, and train."""
    _, args = block_call("conv", (True, True, True))
    args = tuple(a.bfloat16() if isinstance(a, Tensor) and i < 7 else a for i, a in enumerate(args))
    args[1].requires_grad_()
    y, _, _, mean, *_ = ops.conv_block(*args)
    y.sum().backward()
    assert y.dtype == mean.dtype == torch.float32 and args[1].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradcheck_of_the_smooth_part(kind):
    """Float64, fake quantization off, batch statistics on, no activation."""
    block, args = block_call(kind, (False, True, False))
    args = list(args)
    args[{"conv_block": 12, "linear_block": 8, "batch_norm_block": 6}[block]] = 0
    inputs = LEAVES[block]
    count = args[0].shape[1] if block == "batch_norm_block" else None
    args = [a.double() if isinstance(a, Tensor) and i < 7 else a for i, a in enumerate(args)]
    assert count is None or args[1].numel() == count
    leaves = [a.requires_grad_() for a in args[:inputs]]
    assert torch.autograd.gradcheck(lambda *x: getattr(ops, block)(*x, *args[inputs:])[0], leaves, fast_mode=True)


def test_divergence_shows():
    """NaN in the input: the integer path alone would hide it; in training the output is NaN, and gamma = 0 is not."""
    for flags in ((True, False, False), (True, True, True)):
        _, args = block_call("conv", flags)
        x = args[0].clone()
        x[0, 0, 0, 0] = math.nan
        y, low, *_ = ops.conv_block(x.requires_grad_(), *args[1:])
        assert y.isnan().any()
        assert not flags[2] or low.isnan()
        clean = ops.conv_block(args[0].clone().requires_grad_(), *args[1:])
        assert not clean[0].isnan().any()


def test_gamma_zero_trains():
    _, args = block_call("conv", (True, True, True))
    gamma = torch.zeros(8).requires_grad_()
    y, *_ = ops.conv_block(*args[:3], gamma, *args[4:])
    y.sum().backward()
    assert gamma.grad.isfinite().all() and not y.isnan().any()


@pytest.mark.parametrize("flags", [(False, True), (True, False), (True, True)], ids=str)
def test_add_and_pool_blocks(flags):
    a, b = randn(2, 3, 5, 4).requires_grad_(), randn(2, 3, 5, 4, seed=1).requires_grad_()
    args = samples.add_block_args(flags, unit=0.0006)  # nothing clamps
    y, low, _ = ops.add_block(a, b, -1.0, 0, *args[4:])
    y.sum().backward()
    wanted = (a - b).detach()
    assert torch.equal(low, wanted.min()) or not flags[1]
    half_steps = (301 + 77 + 355) * 0.0006 / 2  # of a, b and the sum
    assert (y.detach() - wanted).abs().max() < (half_steps if flags[0] else 1e-6)
    assert torch.equal(a.grad, torch.ones_like(a)) and torch.equal(b.grad, -torch.ones_like(b))
    x = randn(2, 3, 6, 4).requires_grad_()
    pooled, low, high = ops.avg_pool_block(x, [2, 2], [2, 2], [0, 0], False, True, 0, [], *samples.WIDE * 2, *flags)
    pooled.sum().backward()
    wanted = torch.nn.functional.avg_pool2d(x, 2).detach()
    assert (pooled.detach() - wanted).abs().max() < (0.035 if flags[0] else 1e-6)
    assert torch.equal(x.grad, torch.full_like(x, 0.25))
    assert not flags[1] or (low, high) == (wanted.min(), wanted.max())


def test_batch_statistics_match_torch():
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    x = randn(4, 3, 5, 4)
    norm(x)
    mean, var = torch.zeros(3), torch.ones(3)
    *_, batch_mean, batch_var, count = ops.batch_norm_block(
        x, None, None, None, None, 1e-5, 0, *samples.WIDE * 2, False, True, False
    )
    ops.update_batch_norm_(mean, var, batch_mean, batch_var, count, 0.3)
    torch.testing.assert_close((mean, var), (norm.running_mean, norm.running_var))
    before = mean.clone()
    ops.update_batch_norm_(mean, var, batch_mean, batch_var, torch.tensor(0), 0.3)
    assert torch.equal(mean, before)


# Errors


def conv_with(**changes) -> tuple:
    names = ["x", "weight", "bias", "multiplier", "stride", "padding", "dilation", "groups"]
    names += ["x_zero_point", "y_zero_point", "lo", "hi"]
    return tuple({**dict(zip(names, samples.conv_args(2, 1), strict=True)), **changes}.values())


def block_with(position: int, value) -> tuple:
    args = list(samples.conv_block_args())
    args[position] = value
    return tuple(args)


X = randn(2, 3, 4)
U8 = torch.uint8
ERRORS = [
    ("fake_quantize_per_tensor", (i32([1]), *samples.WIDE), r"x must be floating point \(got Int\)"),
    (
        "fake_quantize_per_tensor",
        (X, torch.ones(3), i32(0), 0, 255),
        r"scale must be a float32 tensor with one element \(got Float of shape \[3\]\)",
    ),
    (
        "fake_quantize_per_tensor",
        (X, f32(1.0).double(), i32(0), 0, 255),
        r"scale must be a float32 tensor.*\(got Double",
    ),
    ("fake_quantize_per_tensor", (X, f32(1.0), f32(0.0), 0, 255), r"zero_point must be an int32 tensor.*\(got Float"),
    (
        "fake_quantize_per_tensor",
        (X, f32(1.0), i32(300), 0, 255),
        r"zero_point must lie in \[qmin, qmax\] \(got 300 outside of \[0, 255\]\)",
    ),
    ("fake_quantize_per_tensor", (X, f32(1.0), i32(0), 255, 0), r"-128 <= qmin < qmax <= 255 \(got 255, 0\)"),
    (
        "fake_quantize_per_channel",
        (X, torch.ones(4), i32([0] * 4), 1, 0, 255),
        r"scale.numel\(\) must equal x.size\(1\) \(got 4, 3\)",
    ),
    (
        "fake_quantize_per_channel",
        (X, torch.ones(3), i32([0] * 2), 1, 0, 255),
        r"zero_point.numel\(\) must equal x.size\(1\) \(got 2, 3\)",
    ),
    ("fake_quantize_per_channel", (X, torch.ones(3), i32([0] * 3), 3, 0, 255), r"axis must lie in \[-3, 3\) \(got 3\)"),
    ("min_max", (i32([1]),), r"x must be floating point \(got Int\)"),
    ("min_max_per_channel", (X, -4), r"axis must lie in \[-3, 3\) \(got -4\)"),
    (
        "update_range_",
        (f32(0), f32(0), f32(0), f32(0), "median", 0.1),
        r'observer must be "min_max", "moving_average" or "latest" \(got "median"\)',
    ),
    (
        "update_range_",
        (f32(0), f32(0), torch.ones(2), f32(0), "min_max", 0.1),
        r"all ranges must have one shape \(got \[2\], \[\]\)",
    ),
    (
        "commit_ranges_",
        (*samples.commit_args()[:9], [255], *samples.commit_args()[10:]),
        r"qmax must have one entry per grid \(got 1 for 6 grids\)",
    ),
    (
        "commit_ranges_",
        (*samples.commit_args()[:12], [3, 4], *samples.commit_args()[13:]),
        r"products must be \(a, b, out\) triples \(got 2 indices\)",
    ),
    (
        "commit_ranges_",
        (*samples.commit_args()[:12], [3, 4, 6], *samples.commit_args()[13:]),
        r"products must index grids \(got 6 of 6\)",
    ),
    (
        "calculate_qparams",
        (f32(0).double(), f32(0), 0, 255, False),
        r"every range must have dtype Float \(got Double\)",
    ),
    (
        "quantize_per_tensor",
        (X, *samples.WIDE, torch.int8),
        r"dtype must be uint8 or int8 and hold \[qmin, qmax\] \(got Char for \[0, 255\]\)",
    ),
    ("quantize_per_tensor", (X.int(), *samples.WIDE, U8), r"x must be floating point \(got Int\)"),
    ("dequantize_per_tensor", (X, f32(1.0), i32(0)), r"q must be uint8 or int8 codes \(got Float\)"),
    (
        "dequantize_per_channel",
        (X.to(U8), torch.ones(2), i32([0] * 2), 1),
        r"scale.numel\(\) must equal x.size\(1\) \(got 2, 3\)",
    ),
    (
        "fold",
        (X, torch.ones(3), None, None, None, None, 0.0, f32(1.0), f32(1.0), 8, True),
        r"bias.numel\(\) must equal weight.size\(0\) \(got 3, 2\)",
    ),
    (
        "fold",
        (X, None, None, None, torch.ones(2), None, 0.0, f32(1.0), f32(1.0), 8, True),
        r"bn_mean and bn_var must come together",
    ),
    (
        "fold",
        (X, None, None, None, None, None, 0.0, f32(1.0), f32(1.0), 9, True),
        r"weight_bits must lie in \[2, 8\] \(got 9\)",
    ),
    ("int8_conv", conv_with(x=randn(2, 4, 7, 6)), r"x must have dtype Byte \(got Float\)"),
    (
        "int8_conv",
        conv_with(x=samples.codes(2, 3, 7, 6)),
        r"x.size\(1\) must equal weight.size\(1\) \* groups \(got 3, 4\)",
    ),
    ("int8_conv", conv_with(x=samples.codes(2, 4, 7)), r"x must have as many dimensions as weight \(got 3, 4\)"),
    ("int8_conv", conv_with(bias=i32([0])), r"bias and multiplier must have weight.size\(0\) elements \(got 1, 8\)"),
    ("int8_conv", conv_with(stride=[1]), r"stride, padding and dilation must have 2 entries \(got 1, 2, 2\)"),
    ("int8_conv", conv_with(groups=3), r"groups must divide weight.size\(0\) \(got 3, 8\)"),
    (
        "int8_conv",
        conv_with(x=samples.codes(2, 4, 7, 6), padding=[0, 0], dilation=[1, 9]),
        r"the kernel must not be larger than the padded input \(got 19, 6 in spatial dimension 1\)",
    ),
    (
        "int8_conv",
        conv_with(x_zero_point=256),
        r"zero_point must lie in \[qmin, qmax\] \(got 256 outside of \[0, 255\]\)",
    ),
    ("int8_conv", conv_with(lo=9, hi=3), r"lo and hi must satisfy 0 <= lo <= hi <= 255 \(got 9, 3\)"),
    (
        "int8_linear",
        (
            torch.zeros(1, 40000, dtype=U8),
            torch.zeros(1, 40000, dtype=torch.int8),
            i32([0]),
            torch.ones(1),
            0,
            0,
            0,
            255,
        ),
        r"a sum of 40000 products may not fit an exact int32 accumulator \(at most 33090 at zero point 0\)",
    ),
    (
        "int8_linear",
        (torch.zeros(1, 4, dtype=U8), torch.zeros(1, 3, dtype=torch.int8), i32([0]), torch.ones(1), 0, 0, 0, 255),
        r"x.size\(-1\) must equal weight.size\(1\) \(got x of shape \[1, 4\], weight of shape \[1, 3\]\)",
    ),
    ("int8_add", (X, X, 0, 1.0, 0, 1.0, 0, 0, 255), r"a must have dtype Byte \(got Float\)"),
    (
        "int8_table",
        (X.to(U8), torch.zeros(3, dtype=U8)),
        r"table must be uint8 of shape \[256\] \(got Byte of shape \[3\]\)",
    ),
    (
        "int8_max_pool",
        (X.to(U8), [2], [1], [2], [1], False),
        r"padding must be at most half of kernel_size \(got 2, 2\)",
    ),
    (
        "int8_max_pool",
        (X.to(U8), [2, 2], [1, 1], [0, 0], [1, 1], False),
        r"x must have 2 dimensions more than there are windows, 1 to 3 \(got 3, 2\)",
    ),
    (
        "int8_max_pool",
        (X.to(U8), [5], [1], [0], [1], False),
        r"the window must not be larger than the padded input \(got 5, 4 in spatial dimension 0\)",
    ),
    (
        "int8_avg_pool",
        (X.to(U8), [2], [1], [0], False, True, 0, 0.0, 0, 1.0, 0, 0, 255),
        r"scales must be positive \(got 0, 1\)",
    ),
    ("int8_adaptive_avg_pool", (X.to(U8), [0], 1.0, 0, 1.0, 0, 0, 255), r"output_size must be at least 1 \(got 0\)"),
    ("conv_block", block_with(0, i32([[[[1]]]])), r"x must be floating point \(got Int\)"),
    ("conv_block", block_with(0, randn(2, 3, 7, 6)), r"x.size\(1\) must equal weight.size\(1\) \* groups \(got 3, 4\)"),
    ("conv_block", block_with(2, randn(7)), r"bias.numel\(\) must equal weight.size\(0\) \(got 7, 8\)"),
    (
        "conv_block",
        block_with(3, randn(7)),
        r"batch norm's parameters must have one element per channel \(got 7 for 8 channels\)",
    ),
    ("conv_block", block_with(12, 3), r"activation must be 0 \(none\), 1 \(ReLU\) or 2 \(ReLU6\) \(got 3\)"),
    (
        "conv_block",
        block_with(15, torch.ones(2)),
        r"input_scale must be a float32 tensor with one element \(got Float of shape \[2\]\)",
    ),
    (
        "linear_block",
        (randn(2, 3, 9), *samples.linear_block_args(norm=True)[1:]),
        r"batch norm needs x of shape \[N, I\] \(got \[2, 3, 9\]\)",
    ),
    (
        "batch_norm_block",
        (randn(1, 3), None, None, None, None, 1e-5, 0, *samples.WIDE * 2, False, True, False),
        r"batch statistics need more than one value per channel \(got x of shape \[1, 3\]",
    ),
    (
        "batch_norm_block",
        (X, None, None, None, None, 1e-5, 0, *samples.WIDE * 2, True, False, False),
        r"batch norm without batch_stats needs bn_mean and bn_var \(got none\)",
    ),
    ("add_block", (X, X, 2.0, *samples.add_block_args()[3:]), r"alpha must be 1 or -1 \(got 2\)"),
    (
        "avg_pool_block",
        (X, [2, 2], [2, 2], [0, 0], False, True, 0, [], *samples.WIDE * 2, True, True),
        r"x must have 2 dimensions more than there are windows, 1 to 3 \(got 3, 2\)",
    ),
    (
        "update_batch_norm_",
        (torch.ones(3), torch.ones(3), torch.ones(2), torch.ones(3), torch.tensor(4), 0.1),
        r"all statistics must have one element per channel \(got \[2\], \[3\]\)",
    ),
]


@pytest.mark.parametrize("op, args, message", ERRORS, ids=lambda v: v if isinstance(v, str) and "(" not in v else "")
def test_errors(op, args, message):
    with pytest.raises(RuntimeError, match=message) as caught:
        getattr(ops, op)(*args)
    assert op in str(caught.value)
