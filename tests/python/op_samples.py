"""The table of inputs shared by all op tests: samples for every op, a plain reference written from docs/numerics.md.

References use numpy and torch's own float64 operators, nothing of octet. A new op adds its rows here; test_ops.py picks
them up for every generic test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One call. floats: positions of data in any float dtype; batched: of arguments whose dim 0 is the batch.

    reference takes the same args and returns what the op does, or, for an op that writes, the written arguments in
    order.
    """

    op: str
    args: Callable[[], tuple]
    reference: Callable[..., Any]
    floats: tuple[int, ...] = ()
    batched: tuple[int, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=rng(seed))


def codes(*shape: int, seed: int = 0, low: int = 0, high: int = 256, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(low, high, shape, generator=rng(seed)).to(dtype)


def f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def i32(value: int | list[int]) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


# Grids of the samples. 3.0 * (255 - 100) is far outside of normal data, so some grids are narrow: codes must clamp.
WIDE = (f32(0.031), i32(100), 0, 255)
NARROW = (f32(0.0073), i32(120), 0, 255)
NARROW_BITS = (f32(0.3), i32(3), 0, 15)


# References


def spread(v: Tensor, x: Tensor, axis: int) -> Tensor:
    """v, one value per channel, shaped to broadcast along x's axis."""
    shape = [1] * x.dim()
    shape[axis] = -1
    return v.view(shape)


def ref_codes(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> np.ndarray:
    steps = np.rint(x.to(torch.float32).numpy() / scale.numpy()).astype(np.float64)
    zero = np.broadcast_to(zero_point.numpy().astype(np.float64), steps.shape)
    return np.where(np.isnan(steps), zero, np.clip(steps + zero, qmin, qmax))


def ref_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(ref_codes(x, scale, zero_point, qmin, qmax)).to(dtype)


def ref_dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return scale * (q.to(torch.int32) - zero_point).to(torch.float32)


def ref_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    q = torch.from_numpy(ref_codes(x, scale, zero_point, qmin, qmax)).to(torch.int32)
    return torch.where(x.isnan(), x.float(), ref_dequantize(q, scale, zero_point)).to(x.dtype)


def per_channel(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, *rest: Any) -> Tensor:
        return reference(x, spread(scale, x, axis), spread(zero_point, x, axis), *rest)

    return run


def ref_min_max(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.float().numpy()
    return torch.from_numpy(np.array(values.min())), torch.from_numpy(np.array(values.max()))


def ref_min_max_per_channel(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    rows = x.float().movedim(axis, 0).reshape(x.shape[axis], -1).numpy()
    return torch.from_numpy(rows.min(1)), torch.from_numpy(rows.max(1))


def ref_observed_range(
    low: float, high: float, batch_low: float, batch_high: float, observer: str, constant: float
) -> tuple[float, float]:
    if not (np.isfinite(batch_low) and np.isfinite(batch_high)):
        return low, high
    if low > high:
        return batch_low, batch_high
    if observer == "latest":
        return batch_low, batch_high
    if observer == "min_max":
        return min(low, batch_low), max(high, batch_high)
    c = np.float32(constant)
    return (
        float(np.float32(low) + c * (np.float32(batch_low) - np.float32(low))),
        float(np.float32(high) + c * (np.float32(batch_high) - np.float32(high))),
    )


def ref_update_range(
    low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor, observer: str, constant: float
) -> tuple[Tensor, ...]:
    rows = zip(*(t.flatten().tolist() for t in (low, high, batch_low, batch_high)), strict=True)
    new = [ref_observed_range(*row, observer, constant) for row in rows]
    return tuple(torch.tensor([pair[i] for pair in new]).view(low.shape) for i in (0, 1))


def ref_scale(low: float, high: float, qmin: int, qmax: int, symmetric: bool) -> np.float32:
    low32, high32 = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    if symmetric:
        scale = max(-low32, high32) / np.float32((qmax - qmin) // 2)
    else:
        scale = (high32 - low32) / np.float32(qmax - qmin)
    return np.float32(max(scale, np.float32(2.0**-40)))


def ref_zero_point(scale: np.float32, low: float, qmin: int, qmax: int, symmetric: bool) -> int:
    if symmetric:
        return (qmin + qmax) // 2
    return int(np.clip(np.rint(np.float32(qmin) - np.float32(min(low, 0.0)) / scale), qmin, qmax))


def ref_calculate_qparams(low: Tensor, high: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    scales, zeros = [], []
    for a, b in zip(low.flatten().tolist(), high.flatten().tolist(), strict=True):
        scales.append(ref_scale(a, b, qmin, qmax, symmetric))
        zeros.append(ref_zero_point(scales[-1], a, qmin, qmax, symmetric))
    return torch.tensor(np.array(scales)).view(low.shape), i32(zeros).view(low.shape)


def ref_commit_ranges(
    pending_min, pending_max, low, high, scale, zero_point, steps, nonfinite, qmin, qmax, symmetric, component, *rest
) -> tuple[list[Tensor], ...]:
    """Rules 3, 9b and 9c. rest: products, observers, averaging constants."""
    products, observer, constant = rest
    ranges, skipped = [], []
    for i, (a, b) in enumerate(zip(pending_min, pending_max, strict=True)):
        untouched = a.item() == np.inf and b.item() == -np.inf
        finite = np.isfinite(a.item()) and np.isfinite(b.item())
        skipped.append(nonfinite[i] + int(not untouched and not finite))
        batch = (a.item(), b.item())
        ranges.append(ref_observed_range(low[i].item(), high[i].item(), *batch, observer[i], constant[i]))
    known = [a <= b for a, b in ranges]
    new = [float(ref_scale(*r, qmin[i], qmax[i], symmetric[i])) if known[i] else None for i, r in enumerate(ranges)]
    counts = [1] * len(ranges)
    for name in {c for c in component if c >= 0}:
        members = [i for i, c in enumerate(component) if c == name and known[i]]
        unit = np.float32(np.float32(max(new[i] for i in members)) / np.float32(1023)) if members else 0
        for i in members:
            counts[i] = next(n for n in range(1, 2049, 2) if n * float(unit) >= new[i])
            new[i] = float(np.float32(counts[i] * float(unit)))
    for a, b, out in zip(products[::3], products[1::3], products[2::3], strict=True):
        p, q = snap(new[a] * new[b] / new[out])
        new[out] = float(np.float32(new[a] * new[b] / (p / q)))
    zeros = [
        ref_zero_point(np.float32(new[i]), ranges[i][0], qmin[i], qmax[i], symmetric[i]) if known[i] else None
        for i in range(len(ranges))
    ]
    return (
        [f32(np.inf)] * len(ranges),
        [f32(-np.inf)] * len(ranges),
        [f32(a) for a, _ in ranges],
        [f32(b) for _, b in ranges],
        [f32(new[i]) if known[i] else scale[i] for i in range(len(ranges))],
        [i32(zeros[i]) if known[i] else zero_point[i] for i in range(len(ranges))],
        [i32(n) for n in counts],
        skipped,
    )


def snap(ideal: float) -> tuple[int, int]:
    """Rule 7, by trying every fraction: numerator and odd denominator of the nearest."""
    denominators = np.arange(1, 4096, 2)
    numerators = np.rint(ideal * denominators)
    best = int(np.argmin(np.abs(ideal - numerators / denominators)))
    return int(numerators[best]), int(denominators[best])


def ref_fold(
    weight, bias, gamma, beta, mean, var, eps, input_scale, output_scale, bits, per_channel_weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Rules 4, 5 and 7, channel by channel, in float64."""
    top = 2 ** (bits - 1) - 1
    w = weight.detach().float().numpy()
    sx, sy = float(input_scale), float(output_scale)
    out_codes, biases, multipliers = np.zeros(w.shape, np.int8), [], []
    for c in range(w.shape[0]):
        largest = np.abs(w[c] if per_channel_weights else w).max()
        sw = np.float32(max(np.float32(largest) / np.float32(top), np.float32(2.0**-40)))
        gain, shift = 1.0, 0.0
        if mean is not None:
            gain = (1.0 if gamma is None else float(gamma[c])) / np.sqrt(float(var[c]) + eps)
            shift = (0.0 if beta is None else float(beta[c])) - float(mean[c]) * gain
        ideal = sx * (float(sw) * abs(gain)) / sy
        raised = ideal < 1 / 4095
        p, q = (1, 4095) if raised else snap(min(ideal, 512.0))
        folded_scale = p / q * sy / sx
        if raised:
            out_codes[c] = np.clip(np.rint(w[c].astype(np.float64) * gain / folded_scale), -top, top)
        else:
            out_codes[c] = np.clip(np.rint(w[c] / sw), -top, top) * (-1 if gain < 0 else 1)
        real = (0.0 if bias is None else float(bias[c])) * gain + shift
        biases.append(int(np.clip(np.rint(real / (sx * folded_scale)), -(2**30), 2**30)))
        multipliers.append(p / q)
    return torch.from_numpy(out_codes), i32(biases), torch.tensor(multipliers, dtype=torch.float64).float()


def requantize(acc: Tensor, multiplier: Tensor | float, zero_point: int, lo: int, hi: int) -> Tensor:
    """Rule 6; acc holds integers."""
    product = acc.to(torch.float32) * multiplier
    return (product.round().double() + zero_point).clamp(lo, hi).to(torch.uint8)


def ref_int8_conv(x, weight, bias, multiplier, stride, padding, dilation, groups, zx, zy, lo, hi) -> Tensor:
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
    acc = conv(x.double() - zx, weight.double(), bias.double(), stride, padding, dilation, groups)
    return requantize(acc, spread(multiplier, acc, 1), zy, lo, hi)


def ref_int8_linear(x, weight, bias, multiplier, zx, zy, lo, hi) -> Tensor:
    return requantize((x.double() - zx) @ weight.double().T + bias, multiplier, zy, lo, hi)


def ref_int8_add(a, b, za, ma, zb, mb, zy, lo, hi) -> Tensor:
    total = (a.float() - za) * f32(ma) + (b.float() - zb) * f32(mb)
    return (total.round().double() + zy).clamp(lo, hi).to(torch.uint8)


def ref_int8_mul(a, b, za, zb, m, zy, lo, hi) -> Tensor:
    return requantize((a.double() - za) * (b.double() - zb), f32(m), zy, lo, hi)


def float32(value: float) -> float:
    return float(np.float32(value))


def ref_average(sums: Tensor, counts: Tensor, sx: float, sy: float, zy: int, lo: int, hi: int) -> Tensor:
    """Rule 8: one tie-free multiplier per window size."""
    m = torch.empty(counts.shape)
    for n in counts.unique().tolist():
        p, q = snap(float32(sx) / (float32(sy) * n))
        m[counts == n] = p / q
    return requantize(sums, m, zy, lo, hi)


def ref_int8_avg_pool(x, kernel, stride, padding, ceil_mode, include_pad, divisor, sx, zx, sy, zy, lo, hi) -> Tensor:
    pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.dim()]
    values = x.double() - zx
    ones = torch.ones_like(values)
    # Where padding counts as a value, it lies inside of the window but never adds to the sum.
    inside = pool(ones, kernel, stride, padding, ceil_mode, True)
    area = float(np.prod(kernel))
    if include_pad:
        # torch counts positions up to the padded border: measure them on a padded field of ones without padding.
        wide = F.pad(ones, [p for p in reversed(padding) for _ in (0, 1)], value=1.0)
        field = F.pad(wide, [e for k in reversed(kernel) for e in (0, k)], value=0.0)
        spans = pool(field, kernel, stride, [0] * len(kernel), False, True) * area
        counts = spans[(slice(None), slice(None), *(slice(0, n) for n in inside.shape[2:]))]
    else:
        field = F.pad(ones, [e for k, p in zip(reversed(kernel), reversed(padding), strict=True) for e in (p, p + k)])
        spans = pool(field, kernel, stride, [0] * len(kernel), False, True) * area
        counts = spans[(slice(None), slice(None), *(slice(0, n) for n in inside.shape[2:]))]
    field = F.pad(values, [e for k, p in zip(reversed(kernel), reversed(padding), strict=True) for e in (p, p + k)])
    sums = (pool(field, kernel, stride, [0] * len(kernel), False, True) * area).round()
    sums = sums[(slice(None), slice(None), *(slice(0, n) for n in inside.shape[2:]))]
    counts = torch.full_like(counts, divisor) if divisor else counts.round()
    return ref_average(sums, counts, sx, sy, zy, lo, hi)


def ref_int8_adaptive_avg_pool(x, output_size, sx, zx, sy, zy, lo, hi) -> Tensor:
    pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[x.dim()]
    counts = torch.ones(1, 1, *output_size, dtype=torch.float64)
    for d, out in enumerate(output_size):
        n = x.shape[d + 2]
        sizes = [-(-(i + 1) * n // out) - i * n // out for i in range(out)]
        shape = [1] * x.dim()
        shape[d + 2] = out
        counts = counts * torch.tensor(sizes, dtype=torch.float64).view(shape)
    sums = (pool(x.double() - zx, output_size) * counts).round()
    return ref_average(sums, counts.expand_as(sums), sx, sy, zy, lo, hi)


def ref_two_stage_mean(x, output_size, sx, zx, sy, zy, lo, hi) -> Tensor:
    """Rule 8 where the whole window's multiplier is below 1/4095: first the width, then the rest."""
    rows = (x.double() - zx).sum(-1, keepdim=True)
    stage = ref_average(rows, torch.full_like(rows, x.shape[-1]), sx, sy, zy, 0, 255)
    sums = (stage.double() - zy).sum(-2, keepdim=True)
    return ref_average(sums, torch.full_like(sums, x.shape[-2]), sy, sy, zy, lo, hi)


def ref_max_pool(x, kernel, stride, padding, dilation, ceil_mode) -> Tensor:
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
    return pool(x.double(), kernel, stride, padding, dilation, ceil_mode).to(x.dtype)


def clamp_of(activation: int, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> tuple[int, int]:
    """Rule 6: the codes an activation leaves."""
    z = int(zero_point)
    lo = max(qmin, z) if activation else qmin
    hi = min(qmax, int(np.rint(np.float32(6) / scale.numpy())) + z) if activation == 2 else qmax
    return lo, hi


def no_range() -> tuple[Tensor, Tensor]:
    return f32(np.inf), f32(-np.inf)


BINS = 8192


def ref_coarsened(counts: np.ndarray, steps: int) -> np.ndarray:
    wide = np.zeros(BINS, np.int64)
    np.add.at(wide, (np.arange(BINS) - BINS // 2) // 2**steps + BINS // 2, counts)
    return wide


def ref_merged(counts: Tensor, exponent: Tensor, other: Tensor, other_exponent: Tensor) -> tuple[Tensor, Tensor]:
    joint = torch.maximum(exponent, other_exponent)
    rows = [
        sum(ref_coarsened(c.numpy(), int(joint.view(-1)[i]) - int(e.view(-1)[i])) for c, e in pairs)
        for i, pairs in enumerate(
            ((a, exponent), (b, other_exponent))
            for a, b in zip(counts.view(-1, BINS), other.view(-1, BINS), strict=True)
        )
    ]
    return torch.from_numpy(np.stack(rows)).view(counts.shape), joint


def ref_histogram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of one tensor; empty unless all of it is finite."""
    counts, exponent = np.zeros(BINS, np.int64), -51
    values = x.double().numpy().ravel()
    if values.size and np.isfinite(values).all():
        largest = np.abs(values).max()
        while not (largest < 2.0 ** (exponent + 12)):
            exponent += 1
        np.add.at(counts, np.floor(values / 2.0**exponent).astype(np.int64) + BINS // 2, 1)
    return torch.from_numpy(counts), i32(exponent)


def ref_add_to_histogram(counts: Tensor, exponent: Tensor, x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    parts = [x] if axis is None else list(x.unbind(axis))
    added = [ref_histogram(part) for part in parts]
    shape = exponent.shape
    other, others = torch.stack([c for c, _ in added]), torch.stack([e for _, e in added])
    return ref_merged(counts, exponent, other.view(*shape, BINS), others.view(shape))


def ref_percentile(counts: np.ndarray, width: float, percentile: float, symmetric: bool) -> tuple[float, float]:
    """By looking at every range of whole bins from the outside in."""
    edges = (np.arange(BINS + 1) - BINS // 2) * width
    spare = counts.sum() * (100 - percentile) / 100
    if symmetric:
        middle = BINS // 2
        kept = [k for k in range(1, middle + 1) if counts[: middle - k].sum() + counts[middle + k :].sum() <= spare]
        return edges[middle - kept[0]], edges[middle + kept[0]]
    low = max(i for i in range(BINS) if counts[:i].sum() <= spare / 2)
    high = min(i for i in range(1, BINS + 1) if counts[i:].sum() <= spare / 2)
    return edges[low], edges[high]


def ref_histogram_range(counts, exponent, method, percentile, qmin, qmax, symmetric) -> tuple[Tensor, Tensor]:
    """Of one percentile only: what the searches find is tested by its error, in test_histograms.py."""
    assert method == "percentile"
    rows = zip(counts.view(-1, BINS).numpy(), exponent.view(-1).tolist(), strict=True)
    ranges = [ref_percentile(c, 2.0**e, percentile, symmetric) if c.any() else (np.inf, -np.inf) for c, e in rows]
    low, high = torch.tensor(ranges, dtype=torch.float32).unbind(1)
    return low.view(exponent.shape), high.view(exponent.shape)


def histogram_of(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """One histogram, or of several parts a stack of them."""
    each = [ref_histogram(part) for part in parts]
    return each[0] if len(each) == 1 else (torch.stack([c for c, _ in each]), torch.stack([e for _, e in each]))


def commit_histogram_args() -> tuple:
    """Three grids: both have data, nothing was seen, what was seen is not finite."""
    columns = [
        (*histogram_of(randn(50) * 9), *histogram_of(randn(99, seed=1)), f32(-1.0), f32(2.0)),
        (*histogram_of(randn(50, seed=2)), *histogram_of(torch.empty(0)), f32(np.inf), f32(-np.inf)),
        (*histogram_of(torch.empty(0)), *histogram_of(randn(5, seed=3)), f32(np.nan), f32(1.0)),
    ]
    lists = [list(column) for column in zip(*columns, strict=True)]
    return (*lists, ["percentile"] * 3, [90.0] * 3, [0, 1, 0], [255, 255, 15], [False, True, False])


def ref_commit_histograms(counts, exponents, pending, pending_exponents, lows, highs, methods, percentiles, *rest):
    for i in range(len(counts)):
        counts[i], exponents[i] = ref_merged(counts[i], exponents[i], pending[i], pending_exponents[i])
        pending[i], pending_exponents[i] = histogram_of(torch.empty(0))
        if lows[i].isfinite() and highs[i].isfinite():
            grid = [values[i] for values in rest]
            lows[i], highs[i] = ref_histogram_range(counts[i], exponents[i], methods[i], percentiles[i], *grid)
    return counts, exponents, pending, pending_exponents, lows, highs


def ref_conv_block(x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, *rest) -> tuple:
    """The integer path: what the INT8 model computes."""
    activation, bits, per_channel_weights, sx, zx, x_min, x_max, sy, zy, y_min, y_max, *_ = rest
    folded = ref_fold(weight, bias, gamma, beta, mean, var, eps, sx, sy, bits, per_channel_weights)
    lo, hi = clamp_of(activation, sy, zy, y_min, y_max)
    qx = ref_quantize(x, sx, zx, x_min, x_max, torch.uint8)
    q = ref_int8_conv(qx, *folded, stride, padding, dilation, groups, int(zx), int(zy), lo, hi)
    return ref_dequantize(q, sy, zy), *no_range(), torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64)


def ref_linear_block(x, weight, bias, gamma, beta, mean, var, eps, *rest) -> tuple:
    flat = x.reshape(-1, x.shape[-1], 1)
    y, *others = ref_conv_block(flat, weight[..., None], bias, gamma, beta, mean, var, eps, [1], [0], [1], 1, *rest)
    return y.reshape(*x.shape[:-1], -1), *others


def ref_batch_norm_block(x, gamma, beta, mean, var, eps, activation, *rest) -> tuple:
    channels = x.shape[1]
    weight = torch.ones(channels, 1, 1)
    flat = x.reshape(x.shape[0], channels, -1)
    y, *others = ref_conv_block(
        flat, weight, None, gamma, beta, mean, var, eps, [1], [0], [1], channels, activation, 8, True, *rest
    )
    return y.reshape(x.shape), *others


def ref_add_block(a, b, alpha, activation, *rest) -> tuple:
    sa, za, na, a_min, a_max, sb, zb, nb, b_min, b_max, sy, zy, ny, y_min, y_max, *_ = rest
    qa, qb = ref_quantize(a, sa, za, a_min, a_max, torch.uint8), ref_quantize(b, sb, zb, b_min, b_max, torch.uint8)
    lo, hi = clamp_of(activation, sy, zy, y_min, y_max)
    ma, mb = float32(int(na) / int(ny)), float32(alpha * int(nb) / int(ny))
    q = ref_int8_add(qa, qb, int(za), ma, int(zb), mb, int(zy), lo, hi)
    return ref_dequantize(q, sy, zy), *no_range()


def ref_avg_pool_block(x, kernel, stride, padding, ceil_mode, include_pad, divisor, output_size, *rest) -> tuple:
    sx, zx, x_min, x_max, sy, zy, y_min, y_max, *_ = rest
    q = ref_quantize(x, sx, zx, x_min, x_max, torch.uint8)
    grids = (float(sx), int(zx), float(sy), int(zy), y_min, y_max)
    if kernel:
        q = ref_int8_avg_pool(q, kernel, stride, padding, ceil_mode, include_pad, divisor, *grids)
    else:
        q = ref_int8_adaptive_avg_pool(q, output_size, *grids)
    return ref_dequantize(q, sy, zy), *no_range()


# Samples


def special_values() -> Tensor:
    """Ties, zeros, the ends of the grid, infinities and NaN."""
    scale = WIDE[0].item()
    return torch.tensor([0.0, -0.0, scale / 2, -scale / 2, 1.5 * scale, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-38])


def channel_grids(channels: int) -> tuple[Tensor, Tensor]:
    return rand(channels, seed=1) * 0.02 + 0.005, codes(channels, seed=2, low=90, high=140, dtype=torch.int32)


def conv_args(rank: int, groups: int, stride: int = 1, padding: int = 1, dilation: int = 1, kernel: int = 3) -> tuple:
    """Arguments of int8_conv: odd sizes, full ranges of codes."""
    x = codes(2, 4, *(7, 6, 5)[:rank])
    weight = codes(8, 4 // groups, *[kernel] * rank, seed=1, low=-127, high=128, dtype=torch.int8)
    bias = codes(8, seed=2, low=-2000, high=2000, dtype=torch.int32)
    multiplier = rand(8, seed=3) * 0.01 + 0.0003
    windows = ([stride] * rank, [padding] * rank, [dilation] * rank)
    return x, weight, bias, multiplier, *windows, groups, 100, 50, 50, 255


def batch_norm_args(channels: int) -> tuple:
    """gamma with a zero, negative and tiny entries, beta, mean, var, eps."""
    gamma = randn(channels, seed=4)
    gamma[0], gamma[1] = 0.0, 1e-5
    return gamma, randn(channels, seed=5), randn(channels, seed=6), rand(channels, seed=7) + 0.1, 1e-5


def conv_block_args(
    rank: int = 2, activation: int = 1, norm: bool = True, flags: tuple = (True, False, False)
) -> tuple:
    x, weight = randn(2, 4, *(7, 6, 5)[:rank]), randn(8, 2, *[3] * rank, seed=1)
    bn = batch_norm_args(8) if norm else (None, None, None, None, 1e-5)
    windows = ([2] * rank, [1] * rank, [1] * rank, 2)
    return x, weight, randn(8, seed=2), *bn, *windows, activation, 8, True, *WIDE, *NARROW, *flags


def linear_block_args(flags: tuple = (True, False, False), norm: bool = False) -> tuple:
    bn = batch_norm_args(5) if norm else (None, None, None, None, 1e-5)
    x = randn(6, 9) if norm else randn(2, 3, 9)
    return x, randn(5, 9, seed=1), randn(5, seed=2), *bn, 0, 4, False, *WIDE, *WIDE, *flags


def batch_norm_block_args(flags: tuple = (True, False, False)) -> tuple:
    return randn(4, 3, 5, 4), *batch_norm_args(3), 1, *WIDE, *NARROW, *flags


def add_block_args(
    flags: tuple = (True, False), alpha: float = 1.0, shape: tuple = (2, 3, 5, 4), unit: float = 0.0001
) -> tuple:
    grid = lambda steps, zero: (f32(float32(steps * float32(unit))), i32(zero), i32(steps), 0, 255)  # noqa: E731
    return randn(2, 3, 5, 4), randn(*shape, seed=1), alpha, 1, *grid(301, 120), *grid(77, 90), *grid(355, 60), *flags


def commit_args() -> tuple:
    """Two grids that meet in an add, one without a range, one that diverged, a product and its output."""
    low, high = [-1.0, -0.02, np.inf, np.nan, -2.0, -1.5], [2.0, 0.03, -np.inf, 1.0, 2.0, 3.0]
    old_low, old_high = [np.inf, -0.01, np.inf, -1.0, -1.0, -2.0], [-np.inf, 0.01, -np.inf, 1.0, 1.0, 2.0]
    floats = lambda values: [f32(v) for v in values]  # noqa: E731
    return (
        floats(low),
        floats(high),
        floats(old_low),
        floats(old_high),
        floats([1.0] * 6),
        [i32(0) for _ in low],
        [i32(1) for _ in low],
        [torch.tensor(0) for _ in low],
        [0, 0, 0, 0, 1, 0],
        [255] * 6,
        [False, False, False, False, True, False],
        [0, 0, 0, -1, -1, -1],
        [3, 4, 5],
        ["min_max", "moving_average", "min_max", "min_max", "min_max", "moving_average"],
        [0.1, 0.25, 0.1, 0.1, 0.1, 0.01],
    )


def ranges() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low = torch.tensor([-1.0, np.inf, 0.5, -1.0, -1.0])
    high = torch.tensor([1.0, -np.inf, 0.7, 1.0, 1.0])
    batch_low = torch.tensor([-2.0, -0.3, 0.6, np.nan, -np.inf])
    batch_high = torch.tensor([0.3, 0.4, 0.9, 1.0, 3.0])
    return low, high, batch_low, batch_high


def fold_args(norm: bool = True, per_channel_weights: bool = True, bits: int = 8) -> tuple:
    bn = batch_norm_args(6) if norm else (None, None, None, None, 1e-5)
    weight = randn(6, 3, 3, 3)
    weight[2] = 0.0
    return weight, randn(6, seed=1), *bn, f32(0.02), f32(0.05), bits, per_channel_weights


IMAGE = (2, 3, 5, 4)
LINEAR = (100, 50, 0, 255)
POOL_GRIDS = (0.1, 100, 0.07, 60, 0, 255)

SAMPLES = [
    Sample("fake_quantize_per_tensor", lambda: (randn(*IMAGE), *WIDE), ref_fake_quantize, (0,), (0,)),
    Sample("fake_quantize_per_tensor", lambda: (randn(*IMAGE), *NARROW), ref_fake_quantize, (0,), (0,), "clamping"),
    Sample("fake_quantize_per_tensor", lambda: (randn(7), *NARROW_BITS), ref_fake_quantize, (0,), (0,), "4 bits"),
    Sample(
        "fake_quantize_per_tensor", lambda: (special_values(), *WIDE), ref_fake_quantize, (), (0,), "special values"
    ),
    Sample("fake_quantize_per_tensor", lambda: (f32(1.0), *WIDE), ref_fake_quantize, (0,), (), "0-d"),
    Sample(
        "fake_quantize_per_channel",
        lambda: (randn(*IMAGE), *channel_grids(3), 1, 0, 255),
        per_channel(ref_fake_quantize),
        (0,),
        (0,),
    ),
    Sample(
        "fake_quantize_per_channel",
        lambda: (randn(4, 3), *channel_grids(4), -2, 0, 255),
        per_channel(ref_fake_quantize),
        (0,),
        (),
        "axis 0",
    ),
    Sample(
        "observe_and_fake_quantize",
        lambda: (randn(*IMAGE), *WIDE),
        lambda x, *grid: (ref_fake_quantize(x, *grid), *ref_min_max(x)),
        (0,),
        (0,),
    ),
    Sample("min_max", lambda: (randn(*IMAGE),), ref_min_max, (0,), (0,)),
    Sample("min_max", lambda: (special_values(),), ref_min_max, (), (), "nan"),
    Sample("min_max_per_channel", lambda: (randn(*IMAGE), 1), ref_min_max_per_channel, (0,), (0,)),
    Sample("min_max_per_channel", lambda: (special_values(), 0), ref_min_max_per_channel, (), (), "1-d"),
    Sample("update_range_", lambda: (*ranges(), "min_max", 0.1), ref_update_range),
    Sample("update_range_", lambda: (*ranges(), "moving_average", 0.3), ref_update_range, (), (), "moving average"),
    Sample(
        "merge_pending_",
        lambda: ranges(),
        lambda low, high, a, b: (
            torch.from_numpy(np.minimum(low.numpy(), a.numpy())),
            torch.from_numpy(np.maximum(high.numpy(), b.numpy())),
        ),
    ),
    Sample("commit_ranges_", commit_args, ref_commit_ranges),
    Sample("update_range_", lambda: (*ranges(), "latest", 0.3), ref_update_range, (), (), "latest"),
    Sample("add_to_histogram_", lambda: (*histogram_of(randn(9)), randn(2, 3, 20) * 4, None), ref_add_to_histogram),
    Sample(
        "add_to_histogram_",
        lambda: (
            *histogram_of(randn(9), torch.empty(0), 100 * randn(9)),
            torch.where(torch.arange(30).view(2, 3, 5) == 7, torch.nan, randn(2, 3, 5)),
            1,
        ),
        ref_add_to_histogram,
        (),
        (),
        "per channel",
    ),
    Sample(
        "merge_histogram_",
        lambda: (*histogram_of(randn(9), 100 * randn(9)), *histogram_of(8 * randn(30), randn(30) / 9)),
        ref_merged,
    ),
    Sample(
        "histogram_range",
        lambda: (*histogram_of(randn(999), rand(999), torch.empty(0)), "percentile", 98.0, 0, 255, False),
        ref_histogram_range,
    ),
    Sample(
        "histogram_range",
        lambda: (*histogram_of(randn(999) + 0.3), "percentile", 95.0, -127, 127, True),
        ref_histogram_range,
        (),
        (),
        "symmetric",
    ),
    Sample("commit_histograms_", commit_histogram_args, ref_commit_histograms),
    Sample(
        "calculate_qparams",
        lambda: (-rand(3, 4), rand(3, 4, seed=1) - 0.3, 0, 255, False),
        ref_calculate_qparams,
    ),
    Sample(
        "calculate_qparams",
        lambda: (torch.tensor([-1.0, 0.0, 0.2]), torch.tensor([0.1, 0.0, 3.0]), -127, 127, True),
        ref_calculate_qparams,
        (),
        (),
        "symmetric",
    ),
    Sample("quantize_per_tensor", lambda: (randn(*IMAGE), *NARROW, torch.uint8), ref_quantize, (0,), (0,)),
    Sample(
        "quantize_per_tensor",
        lambda: (randn(*IMAGE), f32(0.01), i32(-3), -128, 127, torch.int8),
        ref_quantize,
        (0,),
        (0,),
        "int8",
    ),
    Sample(
        "quantize_per_tensor",
        lambda: (special_values(), *WIDE, torch.uint8),
        ref_quantize,
        (),
        (0,),
        "special values",
    ),
    Sample(
        "quantize_per_channel",
        lambda: (randn(*IMAGE), *channel_grids(3), 1, 0, 255, torch.uint8),
        per_channel(ref_quantize),
        (0,),
        (0,),
    ),
    Sample("dequantize_per_tensor", lambda: (codes(*IMAGE), *WIDE[:2]), ref_dequantize, (), (0,)),
    Sample(
        "dequantize_per_tensor",
        lambda: (codes(*IMAGE, low=-128, high=128, dtype=torch.int8), f32(0.1), i32(-5)),
        ref_dequantize,
        (),
        (0,),
        "int8",
    ),
    Sample(
        "dequantize_per_channel",
        lambda: (codes(*IMAGE), *channel_grids(3), 1),
        per_channel(ref_dequantize),
        (),
        (0,),
    ),
    Sample("fold", fold_args, ref_fold),
    Sample("fold", lambda: fold_args(False, False, 4), ref_fold, (), (), "per tensor, 4 bits"),
    *(
        Sample("int8_conv", lambda a=a: conv_args(*a), ref_int8_conv, (), (0,), f"{a[0]}d groups {a[1]} {a[2:]}")
        for a in [(1, 1), (2, 1), (3, 1), (2, 4), (2, 2, 2, 0), (2, 1, 3, 2, 2), (1, 4, 2, 1, 2), (2, 1, 1, 0, 1, 1)]
    ),
    Sample(
        "int8_conv",
        lambda: (codes(1, 4, 1, 1), *conv_args(2, 1, 1, 0, 1, 1)[1:]),
        ref_int8_conv,
        (),
        (0,),
        "one pixel",
    ),
    Sample(
        "int8_linear",
        lambda: (
            codes(2, 3, 9),
            codes(8, 9, seed=1, low=-127, high=128, dtype=torch.int8),
            *conv_args(1, 1)[2:4],
            *LINEAR,
        ),
        ref_int8_linear,
        (),
        (0,),
    ),
    Sample(
        "int8_add",
        lambda: (codes(*IMAGE), codes(*IMAGE, seed=1), 3, 0.3, 200, -1.7, 90, 0, 255),
        ref_int8_add,
        (),
        (0, 1),
    ),
    Sample(
        "int8_add",
        lambda: (codes(*IMAGE), codes(2, 3, 1, 1, seed=1), 3, 0.3, 200, 1.7, 90, 20, 200),
        ref_int8_add,
        (),
        (0, 1),
        "broadcast",
    ),
    Sample(
        "int8_mul", lambda: (codes(*IMAGE), codes(*IMAGE, seed=1), 3, 200, 0.013, 90, 0, 255), ref_int8_mul, (), (0, 1)
    ),
    Sample(
        "int8_mul",
        lambda: (codes(2, 3, 1, 1, seed=1), codes(*IMAGE), 3, 200, 0.013, 90, 0, 255),
        ref_int8_mul,
        (),
        (0, 1),
        "broadcast",
    ),
    Sample("int8_table", lambda: (codes(*IMAGE), codes(256, seed=1)), lambda x, t: t[x.long()], (), (0,)),
    *(
        Sample("int8_avg_pool", lambda a=a: (*a[1:], *POOL_GRIDS), ref_int8_avg_pool, (), (0,), a[0])
        for a in [
            ("2d", codes(2, 3, 6, 5), [2, 2], [2, 2], [0, 0], False, True, 0),
            ("padding counts", codes(2, 3, 7, 5), [3, 3], [2, 2], [1, 1], False, True, 0),
            ("padding does not count", codes(2, 3, 7, 5), [3, 2], [2, 1], [1, 1], False, False, 0),
            ("ceil mode", codes(2, 3, 8, 6), [3, 3], [2, 2], [1, 0], True, True, 0),
            ("ceil mode larger than x", codes(2, 3, 1, 2), [2, 3], [2, 2], [0, 0], True, True, 0),
            ("divisor", codes(2, 3, 6, 5), [2, 3], [1, 2], [0, 0], False, True, 5),
            ("1d", codes(2, 3, 9), [4], [3], [2], False, False, 0),
            ("3d", codes(2, 3, 4, 5, 4), [2, 2, 2], [2, 1, 2], [0, 1, 0], False, True, 0),
        ]
    ),
    *(
        Sample("int8_adaptive_avg_pool", lambda a=a: (*a, *POOL_GRIDS), ref_int8_adaptive_avg_pool, (), (0,), str(a[1]))
        for a in [(codes(2, 3, 7, 5), [1, 1]), (codes(2, 3, 7, 5), [3, 2]), (codes(2, 3, 9), [4])]
    ),
    Sample(
        "int8_adaptive_avg_pool",
        lambda: (codes(1, 2, 70, 80), [1, 1], *POOL_GRIDS),
        ref_two_stage_mean,
        (),
        (0,),
        "two stages",
    ),
    *(
        sample
        for shape, *windows in [
            ((2, 3, 7, 5), [2, 2], [2, 2], [0, 0], [1, 1], False),
            ((2, 3, 7, 6), [3, 3], [2, 2], [1, 1], [1, 1], True),
            ((2, 3, 1, 2), [2, 3], [2, 2], [0, 0], [1, 1], True),
            ((2, 3, 9), [3], [1], [1], [2], False),
            ((2, 3, 4, 4, 4), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False),
        ]
        for sample in (
            Sample("int8_max_pool", lambda s=shape, w=windows: (codes(*s), *w), ref_max_pool, (), (0,), f"{windows}"),
            Sample("max_pool", lambda s=shape, w=windows: (randn(*s), *w), ref_max_pool, (0,), (0,), f"{windows}"),
        )
    ),
    *(
        Sample("conv_block", lambda a=a: conv_block_args(*a), ref_conv_block, (0,), (0,), f"{a}")
        for a in [(2, 1), (1, 0), (3, 2), (2, 2, False)]
    ),
    Sample("linear_block", linear_block_args, ref_linear_block, (0,), (0,)),
    Sample("linear_block", lambda: linear_block_args(norm=True), ref_linear_block, (0,), (0,), "batch norm"),
    Sample(
        "batch_norm_block",
        batch_norm_block_args,
        ref_batch_norm_block,
        (0,),
        (0,),
    ),
    Sample("add_block", add_block_args, ref_add_block, (0, 1), (0, 1)),
    Sample(
        "add_block", lambda: add_block_args(alpha=-1.0, shape=(2, 3, 1, 1)), ref_add_block, (0, 1), (0, 1), "broadcast"
    ),
    Sample(
        "avg_pool_block",
        lambda: (randn(*IMAGE), [3, 3], [2, 2], [1, 1], False, True, 0, [], *WIDE, *NARROW, True, False),
        ref_avg_pool_block,
        (0,),
        (0,),
    ),
    Sample(
        "avg_pool_block",
        lambda: (randn(*IMAGE), [], [], [], False, True, 0, [1, 1], *WIDE, *NARROW, True, False),
        ref_avg_pool_block,
        (0,),
        (0,),
        "adaptive",
    ),
    Sample(
        "update_batch_norm_",
        lambda: (randn(4), rand(4), randn(4, seed=1), rand(4, seed=2), torch.tensor(6), 0.1),
        lambda mean, var, m, v, count, momentum: (
            mean.mul(1 - momentum).add(m, alpha=momentum),
            var.mul(1 - momentum).add(v * (int(count) / (int(count) - 1)), alpha=momentum),
        ),
    ),
]
