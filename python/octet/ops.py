"""The ops: thin, typed, documented wrappers of ``torch.ops.octet``. All of them script.

Conventions. ``scale`` is float32 and ``zero_point`` int32, one element each (or one per channel); codes lie in
``[qmin, qmax]``. Activations are uint8 codes, weights int8. Every function raises RuntimeError, naming the op, what
must hold and what came, when shapes, dtypes or bounds do not fit. The rules quoted are those of docs/numerics.md.

>>> import torch, octet.ops
>>> x = torch.tensor([-1.0, 0.0, 0.26, 9.0])
>>> scale, zero_point = octet.ops.calculate_qparams(torch.tensor(-1.0), torch.tensor(1.5), 0, 255, False)
>>> zero_point
tensor(102, dtype=torch.int32)
>>> codes = octet.ops.quantize_per_tensor(x, scale, zero_point, 0, 255, torch.uint8)
>>> codes
tensor([  0, 102, 129, 255], dtype=torch.uint8)
>>> y = octet.ops.fake_quantize_per_tensor(x, scale, zero_point, 0, 255)
>>> torch.equal(y, octet.ops.dequantize_per_tensor(codes, scale, zero_point))
True
"""

import torch
from torch import Tensor

__all__ = [
    "add_block",
    "add_to_histogram_",
    "avg_pool_block",
    "batch_norm_block",
    "calculate_qparams",
    "commit_histograms_",
    "commit_ranges_",
    "conv_block",
    "dequantize_per_channel",
    "dequantize_per_tensor",
    "fake_quantize_per_channel",
    "fake_quantize_per_tensor",
    "fold",
    "histogram_range",
    "int8_adaptive_avg_pool",
    "int8_add",
    "int8_avg_pool",
    "int8_conv",
    "int8_linear",
    "int8_max_pool",
    "int8_mul",
    "int8_table",
    "linear_block",
    "max_pool",
    "merge_histogram_",
    "merge_pending_",
    "min_max",
    "min_max_per_channel",
    "observe_and_fake_quantize",
    "quantize_per_channel",
    "quantize_per_tensor",
    "run_network",
    "update_batch_norm_",
    "update_range_",
]


# Fake quantization


def fake_quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """``scale * (q - zero_point)`` with ``q = clamp(round(x / scale) + zero_point, qmin, qmax)`` (rules 1 and 2).

    x: any shape, floating point, met by the grid in float32. Returns x's shape, dtype and strides; float32 under
    autocast, because a bfloat16 value can be off its grid. NaN passes, infinities saturate.
    Gradient: straight through, 1 where the code was not clamped, else 0; none for the grid.

    >>> x = torch.tensor([-2.0, 0.3, 4.0], requires_grad=True)
    >>> y = fake_quantize_per_tensor(x, torch.tensor(0.5), torch.tensor(2, dtype=torch.int32), 0, 7)
    >>> y.tolist()
    [-1.0, 0.5, 2.5]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 0.0]
    """
    return torch.ops.octet.fake_quantize_per_tensor(x, scale, zero_point, qmin, qmax)


def fake_quantize_per_channel(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """:func:`fake_quantize_per_tensor` with a grid for every index along axis.

    scale, zero_point: shape ``[x.size(axis)]``.

    >>> x = torch.tensor([[0.3, 0.3], [5.0, -5.0]])
    >>> fake_quantize_per_channel(x, torch.tensor([0.25, 1.0]), torch.zeros(2, dtype=torch.int32), 0, -4, 3)
    tensor([[ 0.2500,  0.2500],
            [ 3.0000, -4.0000]])
    """
    return torch.ops.octet.fake_quantize_per_channel(x, scale, zero_point, axis, qmin, qmax)


def observe_and_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(fake_quantize_per_tensor(x, ...), *min_max(x))``; the range has no gradient.

    >>> y, low, high = observe_and_fake_quantize(
    ...     torch.tensor([-0.3, 0.9]), torch.tensor(0.5), torch.tensor(1, dtype=torch.int32), 0, 3)
    >>> y.tolist(), round(low.item(), 2), round(high.item(), 2)
    ([-0.5, 1.0], -0.3, 0.9)
    """
    return torch.ops.octet.observe_and_fake_quantize(x, scale, zero_point, qmin, qmax)


# Observation


def min_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of x, float32 of shape ``[]``. No gradient.

    x: any shape, floating point. NaN anywhere makes both NaN; an empty x gives the empty range (inf, -inf).

    >>> min_max(torch.tensor([3.0, -1.0]))
    (tensor(-1.), tensor(3.))
    >>> min_max(torch.empty(0))
    (tensor(inf), tensor(-inf))
    """
    return torch.ops.octet.min_max(x)


def min_max_per_channel(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """:func:`min_max` for every index along axis: float32 of shape ``[x.size(axis)]``.

    >>> min_max_per_channel(torch.tensor([[1.0, 2.0], [-4.0, 0.0]]), 0)
    (tensor([ 1., -4.]), tensor([2., 0.]))
    """
    return torch.ops.octet.min_max_per_channel(x, axis)


def update_range_(
    min: Tensor, max: Tensor, batch_min: Tensor, batch_max: Tensor, observer: str, averaging_constant: float
) -> None:
    """Updates the observed range (min, max) in place by a batch's range, elementwise; all float32 of one shape.

    observer: "min_max" keeps the extremes, "moving_average" adds ``averaging_constant * (batch - state)``. The first
    batch is taken as it is; batch entries that are NaN, infinite or empty change nothing.

    >>> low, high = torch.tensor(-1.0), torch.tensor(1.0)
    >>> update_range_(low, high, torch.tensor(-2.0), torch.tensor(0.5), "moving_average", 0.5)
    >>> low, high
    (tensor(-1.5000), tensor(0.7500))
    """
    torch.ops.octet.update_range_(min, max, batch_min, batch_max, observer, averaging_constant)


def merge_pending_(pending_min: Tensor, pending_max: Tensor, min: Tensor, max: Tensor) -> None:
    """Adds a range to what this forward saw so far: elementwise minimum and maximum in place, NaN sticks.

    >>> low, high = torch.tensor(float("inf")), torch.tensor(-float("inf"))
    >>> merge_pending_(low, high, torch.tensor(-1.0), torch.tensor(2.0))
    >>> low, high
    (tensor(-1.), tensor(2.))
    """
    torch.ops.octet.merge_pending_(pending_min, pending_max, min, max)


def empty_histogram(channels: int | None = None) -> tuple[Tensor, Tensor]:
    """Counts and exponent of a histogram of nothing, or of so many. No op; the other histogram functions take it.

    >>> counts, exponent = empty_histogram()
    >>> counts.shape, exponent
    (torch.Size([8192]), tensor(-51, dtype=torch.int32))
    """
    shape: list[int] = [] if channels is None else [channels]
    return torch.zeros([*shape, 8192], dtype=torch.int64), torch.full(shape, -51, dtype=torch.int32)


def add_to_histogram_(counts: Tensor, exponent: Tensor, x: Tensor, axis: int | None = None) -> None:
    """Counts the values of x, any shape, floating point.

    counts: int64 ``[8192]``; exponent: int32 ``[]``. Bin i counts what lies in ``[i - 4096, i - 4095) * 2^exponent``.
    Bins are merged in pairs, and exponent grows, as the data demand; no count is ever split, so batches and their
    order do not matter. axis: one histogram for each index along it, counts ``[x.size(axis), 8192]``. A tensor (a
    channel) with NaN or infinities changes nothing.

    >>> counts, exponent = empty_histogram()
    >>> add_to_histogram_(counts, exponent, torch.tensor([-1.0, 0.5, 0.5, 3.0]))
    >>> exponent, [(i - 4096) * 2.0**exponent.item() for i in counts.nonzero().flatten().tolist()]
    (tensor(-10, dtype=torch.int32), [-1.0, 0.5, 3.0])
    """
    torch.ops.octet.add_to_histogram_(counts, exponent, x, axis)


def merge_histogram_(counts: Tensor, exponent: Tensor, other_counts: Tensor, other_exponent: Tensor) -> None:
    """Adds another histogram, as if its values had been counted here; any number of them at once, one per row.

    >>> counts, exponent = empty_histogram()
    >>> other_counts, other_exponent = empty_histogram()
    >>> add_to_histogram_(other_counts, other_exponent, torch.tensor([5.0]))
    >>> merge_histogram_(counts, exponent, other_counts, other_exponent)
    >>> torch.equal(counts, other_counts) and torch.equal(exponent, other_exponent)
    True
    """
    torch.ops.octet.merge_histogram_(counts, exponent, other_counts, other_exponent)


def histogram_range(
    counts: Tensor, exponent: Tensor, method: str, percentile: float, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The range to quantize by, (min, max) float32 in the shape of exponent.

    method: ``"percentile"`` keeps `percentile` % of the values, ``"mse"`` has the least squared error, ``"entropy"``
    loses least information. The empty range (inf, -inf) for an empty histogram.

    >>> counts, exponent = empty_histogram()
    >>> add_to_histogram_(counts, exponent, torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([100.0])]))
    >>> low, high = histogram_range(counts, exponent, "percentile", 99.5, 0, 255, False)
    >>> low, high
    (tensor(-1.), tensor(1.))
    """
    return torch.ops.octet.histogram_range(counts, exponent, method, percentile, qmin, qmax, symmetric)


def commit_histograms_(
    counts: list[Tensor],
    exponent: list[Tensor],
    pending_counts: list[Tensor],
    pending_exponent: list[Tensor],
    pending_min: list[Tensor],
    pending_max: list[Tensor],
    method: list[str],
    percentile: list[float],
    qmin: list[int],
    qmax: list[int],
    symmetric: list[bool],
) -> None:
    """What comes before :func:`commit_ranges_` for grids that choose their range from a histogram.

    What a forward counted, pending_counts and pending_exponent, goes into the histogram and is emptied; the range
    chosen from the histogram takes the place of the pending one where that is finite. One entry per grid; method and
    percentile as in :func:`histogram_range`. Such a grid's observer is ``"latest"``.

    >>> histogram, pending = ([[t] for t in empty_histogram()] for _ in range(2))
    >>> add_to_histogram_(pending[0][0], pending[1][0], torch.tensor([0.0, 1.0]))
    >>> low, high = [torch.tensor(0.0)], [torch.tensor(1.0)]
    >>> commit_histograms_(*histogram, *pending, low, high, ["percentile"], [100.0], [0], [255], [False])
    >>> low, high, int(histogram[0][0].sum()), int(pending[0][0].sum())
    ([tensor(0.)], [tensor(1.0005)], 2, 0)
    """
    torch.ops.octet.commit_histograms_(
        counts,
        exponent,
        pending_counts,
        pending_exponent,
        pending_min,
        pending_max,
        method,
        percentile,
        qmin,
        qmax,
        symmetric,
    )


def commit_ranges_(
    pending_min: list[Tensor],
    pending_max: list[Tensor],
    min: list[Tensor],
    max: list[Tensor],
    scale: list[Tensor],
    zero_point: list[Tensor],
    steps: list[Tensor],
    nonfinite: list[Tensor],
    qmin: list[int],
    qmax: list[int],
    symmetric: list[bool],
    component: list[int],
    products: list[int],
    observer: list[str],
    averaging_constant: list[float],
) -> None:
    """Turns what a forward saw into the grids of the next one, for all grids of a model at once.

    For every grid the pending range updates (min, max) by its observer, all ranges are solved together (rule 9), then
    scale, zero_point and steps are written and the pending range is emptied. A pending range with NaN or infinities is
    skipped and counted in nonfinite; a grid without a range keeps what it has; without any pending range nothing
    changes.

    Lists have one entry per grid, tensors one element: ranges and scale float32, zero_point and steps int32, nonfinite
    int64. component: grids with the same id >= 0 meet in an add, -1: in none. products: flattened (a, b, out) triples.

    >>> f = lambda value: [torch.tensor(value)]
    >>> i = lambda value: [torch.tensor(value, dtype=torch.int32)]
    >>> scale, zero_point = f(1.0), i(0)
    >>> commit_ranges_(f(-1.0), f(1.55), f(float("inf")), f(-float("inf")), scale, zero_point, i(1), [torch.tensor(0)],
    ...                [0], [255], [False], [-1], [], ["min_max"], [0.01])
    >>> scale, zero_point
    ([tensor(0.0100)], [tensor(100, dtype=torch.int32)])
    """
    torch.ops.octet.commit_ranges_(
        pending_min,
        pending_max,
        min,
        max,
        scale,
        zero_point,
        steps,
        nonfinite,
        qmin,
        qmax,
        symmetric,
        component,
        products,
        observer,
        averaging_constant,
    )


def calculate_qparams(min: Tensor, max: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) of ranges, elementwise (rule 3): float32 and int32 of min's shape. No gradient.

    min, max: float32 of one shape. The range is widened to include 0; an empty range gives scale 1, a NaN a NaN scale.
    Symmetric grids have their zero point in the middle of [qmin, qmax].

    >>> calculate_qparams(torch.tensor([-1.0]), torch.tensor([127.0]), -127, 127, True)
    (tensor([1.]), tensor([0], dtype=torch.int32))
    """
    return torch.ops.octet.calculate_qparams(min, max, qmin, qmax, symmetric)


# Codes


def quantize_per_tensor(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Codes ``clamp(round(x / scale) + zero_point, qmin, qmax)``, halves to even (rule 1). No gradient.

    x: any shape, floating point, met in float32. dtype: torch.uint8 or torch.int8, which must hold [qmin, qmax].
    Returns x's shape and strides. NaN gives zero_point, infinities saturate.

    >>> quantize_per_tensor(torch.tensor([-1.0, 0.5, 1.5, 99.0]), torch.tensor(1.0),
    ...                     torch.tensor(0, dtype=torch.int32), -127, 127, torch.int8)
    tensor([-1,  0,  2, 99], dtype=torch.int8)
    """
    return torch.ops.octet.quantize_per_tensor(x, scale, zero_point, qmin, qmax, dtype)


def quantize_per_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """:func:`quantize_per_tensor` with a grid for every index along axis.

    >>> quantize_per_channel(torch.ones(2, 1), torch.tensor([0.5, 0.1]), torch.zeros(2, dtype=torch.int32), 0, -127,
    ...                      127, torch.int8).tolist()
    [[2], [10]]
    """
    return torch.ops.octet.quantize_per_channel(x, scale, zero_point, axis, qmin, qmax, dtype)


def dequantize_per_tensor(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``scale * (q - zero_point)`` in float32. q: uint8 or int8, any shape; shape and strides stay.

    >>> dequantize_per_tensor(torch.tensor([0, 3], dtype=torch.uint8), torch.tensor(0.5),
    ...                       torch.tensor(1, dtype=torch.int32))
    tensor([-0.5000,  1.0000])
    """
    return torch.ops.octet.dequantize_per_tensor(q, scale, zero_point)


def dequantize_per_channel(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """:func:`dequantize_per_tensor` with a grid for every index along axis.

    >>> dequantize_per_channel(torch.ones(2, 1, dtype=torch.int8), torch.tensor([0.5, 2.0]),
    ...                        torch.zeros(2, dtype=torch.int32), 0).tolist()
    [[0.5], [2.0]]
    """
    return torch.ops.octet.dequantize_per_channel(q, scale, zero_point, axis)


def fold(
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    input_scale: Tensor,
    output_scale: Tensor,
    weight_bits: int,
    per_channel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integer parameters of a convolution or linear layer, batch norm folded in: (codes, bias, multiplier).

    Rules 4, 5 and 7: codes int8 of weight's shape, bias int32 ``[O]``, multiplier float32 ``[O]``.
    weight: ``[O, ...]``; bias and bn_*: ``[O]`` or None. bn_mean and bn_var come together, without them there is no
    batch norm. The eval forward of blocks and convert both use it. Batch norm alone is a depthwise convolution with
    weight 1 (rule 11). No gradient.

    >>> codes, bias, multiplier = fold(torch.tensor([[0.5, -1.0]]), torch.tensor([2.0]), None, None, None, None, 1e-5,
    ...                                torch.tensor(0.02), torch.tensor(0.1), 8, True)
    >>> codes.tolist(), bias.tolist(), multiplier.shape
    ([[64, -127]], [12700], torch.Size([1]))
    """
    return torch.ops.octet.fold(
        weight,
        bias,
        bn_weight,
        bn_bias,
        bn_mean,
        bn_var,
        bn_eps,
        input_scale,
        output_scale,
        weight_bits,
        per_channel,
    )


# INT8 operators


def int8_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    x_zero_point: int,
    y_zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """``clamp(round(f32(acc) * multiplier) + y_zero_point, lo, hi)``, acc the exact int32 convolution (rules 5 and 6).

    x: uint8 ``[N, I, spatial...]`` with 1 to 3 spatial dimensions, by the weight's; weight: int8 ``[O, I / groups,
    kernel...]``, bias: int32 ``[O]``, multiplier: float32 ``[O]``, as :func:`fold` gives them. acc sums
    ``(x - x_zero_point) * weight``, plus bias; padding contributes nothing. Returns uint8 ``[N, O, out...]`` with
    channels_last strides. Refused: reductions too long for an exact accumulator.

    >>> x = torch.tensor([[[10, 12, 14]]], dtype=torch.uint8)
    >>> weight = torch.tensor([[[1, 2]]], dtype=torch.int8)
    >>> int8_conv(x, weight, torch.tensor([1], dtype=torch.int32), torch.tensor([1.0]), [1], [0], [1], 1, 10, 5, 0, 255)
    tensor([[[10, 16]]], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_conv(
        x, weight, bias, multiplier, stride, padding, dilation, groups, x_zero_point, y_zero_point, lo, hi
    )


def int8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    x_zero_point: int,
    y_zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """:func:`int8_conv` for a linear layer: x uint8 ``[..., I]``, weight int8 ``[O, I]``; returns uint8 ``[..., O]``.

    >>> x = torch.tensor([[10, 12]], dtype=torch.uint8)
    >>> weight = torch.tensor([[1, 2]], dtype=torch.int8)
    >>> int8_linear(x, weight, torch.tensor([1], dtype=torch.int32), torch.tensor([1.0]), 10, 5, 0, 255)
    tensor([[10]], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_linear(x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi)


def int8_add(
    a: Tensor,
    b: Tensor,
    a_zero_point: int,
    a_ratio: float,
    b_zero_point: int,
    b_ratio: float,
    y_zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """``clamp(round((a - a_zero_point) * a_ratio + (b - b_zero_point) * b_ratio) + y_zero_point, lo, hi)`` (rule 10).

    a, b: uint8, shapes that broadcast. Ratios are n_a / n_y and +-n_b / n_y of the grids' steps, rounded to float32; a
    negative one subtracts. Returns uint8, laid out as the operand that has the result's shape.

    >>> a, b = torch.tensor([10], dtype=torch.uint8), torch.tensor([20], dtype=torch.uint8)
    >>> int8_add(a, b, 0, 1.0, 0, 1 / 3, 100, 0, 255)
    tensor([117], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_add(a, b, a_zero_point, a_ratio, b_zero_point, b_ratio, y_zero_point, lo, hi)


def int8_mul(
    a: Tensor, b: Tensor, a_zero_point: int, b_zero_point: int, multiplier: float, y_zero_point: int, lo: int, hi: int
) -> Tensor:
    """``clamp(round((a - a_zero_point) * (b - b_zero_point) * multiplier) + y_zero_point, lo, hi)`` (rule 11).

    a, b: uint8, shapes that broadcast.

    >>> int8_mul(torch.tensor([13], dtype=torch.uint8), torch.tensor([8], dtype=torch.uint8), 3, 4, 0.5, 1, 0, 255)
    tensor([21], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_mul(a, b, a_zero_point, b_zero_point, multiplier, y_zero_point, lo, hi)


def int8_avg_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """Average pooling from one grid to another (rule 8); windows as torch.nn.AvgPool1d to 3d.

    x: uint8 ``[N, C, spatial...]``; lists have one entry per spatial dimension; divisor_override 0: none. Scales hold
    float32 values. Returns uint8 with channels_last strides.

    >>> x = torch.tensor([[[10, 13, 20, 20]]], dtype=torch.uint8)
    >>> int8_avg_pool(x, [2], [2], [0], False, True, 0, 0.5, 0, 0.5, 0, 0, 255)
    tensor([[[12, 20]]], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_avg_pool(
        x,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
        x_scale,
        x_zero_point,
        y_scale,
        y_zero_point,
        lo,
        hi,
    )


def int8_adaptive_avg_pool(
    x: Tensor,
    output_size: list[int],
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """Average pooling to output_size, as torch.nn.AdaptiveAvgPool1d to 3d (rule 8); ``[1, 1]`` is the global mean.

    >>> x = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    >>> int8_adaptive_avg_pool(x, [1, 1], 1.0, 0, 0.5, 0, 0, 255)
    tensor([[[[8]]]], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_adaptive_avg_pool(x, output_size, x_scale, x_zero_point, y_scale, y_zero_point, lo, hi)


def max_pool(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Max pooling of float values, windows as torch.nn.MaxPool1d to 3d: torch's values and gradient.

    Backward keeps one byte per output instead of x and an int64 index. The result has channels_last strides.

    >>> max_pool(torch.tensor([[[1.0, 5.0, 2.0, 3.0]]]), [2], [2], [0], [1], False)
    tensor([[[5., 3.]]])
    """
    return torch.ops.octet.max_pool(x, kernel_size, stride, padding, dilation, ceil_mode)


def int8_max_pool(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Max pooling of codes, windows as torch.nn.MaxPool1d to 3d; the result is on x's grid. Padding never wins.

    >>> int8_max_pool(torch.tensor([[[1, 5, 2, 3]]], dtype=torch.uint8), [2], [2], [0], [1], False)
    tensor([[[5, 3]]], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_max_pool(x, kernel_size, stride, padding, dilation, ceil_mode)


def int8_table(x: Tensor, table: Tensor) -> Tensor:
    """``table[x]``: x uint8, any shape; table uint8 ``[256]`` (rule 12).

    >>> int8_table(torch.tensor([0, 255], dtype=torch.uint8), torch.arange(255, -1, -1).to(torch.uint8))
    tensor([255,   0], dtype=torch.uint8)
    """
    return torch.ops.octet.int8_table(x, table)


# Training blocks


def run_network(
    inputs: list[Tensor], program: Tensor, weights: Tensor, biases: Tensor, numbers: Tensor
) -> list[Tensor]:
    """A whole INT8 network, or the part of one between two float islands, in one call; see `octet.network`.

    inputs: floating point where the program begins with a quantize, uint8 codes elsewhere; any strides and batch size.
    program int64, weights int8, biases int32, numbers float32, all one-dimensional: what `octet.network.lower` writes.

    Returns float32 tensors or uint8 codes, bit for bit what the single operators give. No gradient. The first call
    packs the weights; they stay with `program` and die with it.
    """
    return torch.ops.octet.run_network(inputs, program, weights, biases, numbers)


def conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: int,
    weight_bits: int,
    per_channel: bool,
    input_scale: Tensor,
    input_zero_point: Tensor,
    input_qmin: int,
    input_qmax: int,
    output_scale: Tensor,
    output_zero_point: Tensor,
    output_qmin: int,
    output_qmax: int,
    fake_quantize: bool,
    batch_stats: bool,
    observe: bool,
    low_memory: bool = False,
    process_group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The forward of a convolution block: convolution, batch norm, activation and the output's grid.

    x: ``[N, I, spatial...]``; weight: ``[O, I / groups, kernel...]``; bias, bn_*: ``[O]`` or None; floating point.
    activation: 0 none, 1 ReLU, 2 ReLU6. Returns (y, min, max, mean, var, count): min and max of the output before its
    grid (the empty range without observe); mean and biased variance of the batch and int64 [] count, the values per
    channel (empty tensors without batch_stats); these have no gradient. y is float32 (float64 for float64 weights).

    - fake_quantize False: float.
    - True with batch_stats: the fake-quantized, unfolded weight, batch norm over the batch, fake quantization of the
      output.
    - True without batch_stats: the bits of the INT8 model, with the gradient of the float composition (straight
      through).

    With batch_stats and fake_quantize x must lie on the input grid, as its producer's fake quantization leaves it:
    backward keeps its codes. low_memory: backward computes the convolution again instead of keeping its output.
    process_group: the ``group_name`` of the processes whose batches count as one, as in ``torch.nn.SyncBatchNorm``; all
    of them must make the call. Empty for the batch of this process alone.

    >>> grid = (torch.tensor(0.01), torch.tensor(128, dtype=torch.int32), 0, 255)
    >>> x, weight = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 1, 1), -1.0)
    >>> y, low, high, mean, *_ = conv_block(x, weight, None, None, None, None, None, 1e-5, [1, 1], [0, 0], [1, 1], 1,
    ...                                     0, 8, True, *grid, *grid, True, False, True)
    >>> torch.allclose(y, torch.full((1, 1, 2, 2), -0.5)), low, high, mean.numel()
    (True, tensor(-0.5000), tensor(-0.5000), 0)
    """
    return torch.ops.octet.conv_block(
        x,
        weight,
        bias,
        bn_weight,
        bn_bias,
        bn_mean,
        bn_var,
        bn_eps,
        stride,
        padding,
        dilation,
        groups,
        activation,
        weight_bits,
        per_channel,
        input_scale,
        input_zero_point,
        input_qmin,
        input_qmax,
        output_scale,
        output_zero_point,
        output_qmin,
        output_qmax,
        fake_quantize,
        batch_stats,
        observe,
        low_memory,
        process_group,
    )


def linear_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    activation: int,
    weight_bits: int,
    per_channel: bool,
    input_scale: Tensor,
    input_zero_point: Tensor,
    input_qmin: int,
    input_qmax: int,
    output_scale: Tensor,
    output_zero_point: Tensor,
    output_qmin: int,
    output_qmax: int,
    fake_quantize: bool,
    batch_stats: bool,
    observe: bool,
    low_memory: bool = False,
    process_group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`conv_block` for a linear layer: x ``[..., I]``, weight ``[O, I]``; batch norm needs x of shape ``[N, I]``.

    >>> grid = (torch.tensor(0.01), torch.tensor(128, dtype=torch.int32), 0, 255)
    >>> y = linear_block(torch.ones(3, 2), torch.tensor([[0.25, 0.25]]), None, None, None, None, None, 1e-5, 1, 8, True,
    ...                  *grid, *grid, False, False, False)[0]
    >>> y.flatten().tolist()
    [0.5, 0.5, 0.5]
    """
    return torch.ops.octet.linear_block(
        x,
        weight,
        bias,
        bn_weight,
        bn_bias,
        bn_mean,
        bn_var,
        bn_eps,
        activation,
        weight_bits,
        per_channel,
        input_scale,
        input_zero_point,
        input_qmin,
        input_qmax,
        output_scale,
        output_zero_point,
        output_qmin,
        output_qmax,
        fake_quantize,
        batch_stats,
        observe,
        low_memory,
        process_group,
    )


def batch_norm_block(
    x: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    activation: int,
    input_scale: Tensor,
    input_zero_point: Tensor,
    input_qmin: int,
    input_qmax: int,
    output_scale: Tensor,
    output_zero_point: Tensor,
    output_qmin: int,
    output_qmax: int,
    fake_quantize: bool,
    batch_stats: bool,
    observe: bool,
    process_group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`conv_block` for batch norm alone: x ``[N, C, ...]`` (rule 11: a depthwise convolution with weight 1).

    >>> grid = (torch.tensor(0.02), torch.tensor(128, dtype=torch.int32), 0, 255)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> y, _, _, mean, var, count = batch_norm_block(x, None, None, None, None, 0.0, 0, *grid, *grid, False, True, True)
    >>> y.flatten().tolist(), mean.tolist(), var.tolist(), count
    ([-1.0, 1.0], [2.0], [1.0], tensor(2))
    """
    return torch.ops.octet.batch_norm_block(
        x,
        bn_weight,
        bn_bias,
        bn_mean,
        bn_var,
        bn_eps,
        activation,
        input_scale,
        input_zero_point,
        input_qmin,
        input_qmax,
        output_scale,
        output_zero_point,
        output_qmin,
        output_qmax,
        fake_quantize,
        batch_stats,
        observe,
        process_group,
    )


def add_block(
    a: Tensor,
    b: Tensor,
    alpha: float,
    activation: int,
    a_scale: Tensor,
    a_zero_point: Tensor,
    a_steps: Tensor,
    a_qmin: int,
    a_qmax: int,
    b_scale: Tensor,
    b_zero_point: Tensor,
    b_steps: Tensor,
    b_qmin: int,
    b_qmax: int,
    output_scale: Tensor,
    output_zero_point: Tensor,
    output_steps: Tensor,
    output_qmin: int,
    output_qmax: int,
    fake_quantize: bool,
    observe: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``activation(a + alpha * b)`` on the output's grid; alpha 1 or -1, shapes that broadcast. Returns (y, min, max).

    The three grids lie in one component (rule 9b): their scales are ``steps * u``; steps: int32, one element each.
    With fake_quantize the value is that of the INT8 model (rule 10), the gradient straight through.

    >>> grid = (torch.tensor(0.1), torch.tensor(128, dtype=torch.int32), torch.tensor(1, dtype=torch.int32), 0, 255)
    >>> y, low, high = add_block(torch.tensor([1.0]), torch.tensor([2.0]), -1.0, 0, *grid, *grid, *grid, True, True)
    >>> round(y.item(), 4), low.item()
    (-1.0, -1.0)
    """
    return torch.ops.octet.add_block(
        a,
        b,
        alpha,
        activation,
        a_scale,
        a_zero_point,
        a_steps,
        a_qmin,
        a_qmax,
        b_scale,
        b_zero_point,
        b_steps,
        b_qmin,
        b_qmax,
        output_scale,
        output_zero_point,
        output_steps,
        output_qmin,
        output_qmax,
        fake_quantize,
        observe,
    )


def avg_pool_block(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    output_size: list[int],
    input_scale: Tensor,
    input_zero_point: Tensor,
    input_qmin: int,
    input_qmax: int,
    output_scale: Tensor,
    output_zero_point: Tensor,
    output_qmin: int,
    output_qmax: int,
    fake_quantize: bool,
    observe: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average pooling onto the output's grid; adaptive to output_size where kernel_size is empty.

    x: ``[N, C, spatial...]`` with 1 to 3 spatial dimensions; arguments as torch.nn's, divisor_override 0: none.
    Returns (y, min, max).

    >>> grid = (torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), 0, 255)
    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    >>> avg_pool_block(x, [], [], [], False, True, 0, [1], *grid, *grid, True, True)
    (tensor([[[2.5000]]]), tensor(2.5000), tensor(2.5000))
    """
    return torch.ops.octet.avg_pool_block(
        x,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
        output_size,
        input_scale,
        input_zero_point,
        input_qmin,
        input_qmax,
        output_scale,
        output_zero_point,
        output_qmin,
        output_qmax,
        fake_quantize,
        observe,
    )


def update_batch_norm_(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: Tensor, momentum: float
) -> None:
    """``running = (1 - momentum) * running + momentum * batch`` in place; all ``[C]``.

    var: biased, made unbiased by count, int64 [], the number of values per channel. An empty batch (count 0) changes
    nothing.

    >>> mean, var = torch.zeros(1), torch.ones(1)
    >>> update_batch_norm_(mean, var, torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor(2), 0.5)
    >>> mean, var
    (tensor([1.]), tensor([1.5000]))
    """
    torch.ops.octet.update_batch_norm_(running_mean, running_var, mean, var, count, momentum)
