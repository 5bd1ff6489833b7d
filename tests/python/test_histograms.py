"""Histograms and the ranges chosen from them: against numpy in float64, whatever the split of the data; calibration."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import octet
from helpers import equal_bits, train
from models import build
from octet import ops
from octet.nn import EntropyObserver, MinMaxObserver, MseObserver, PercentileObserver

OBSERVERS = (PercentileObserver, MseObserver, EntropyObserver)
METHODS = ("percentile", "mse", "entropy")
DATA = {
    "normal": lambda: torch.randn(20000),
    "positive": lambda: torch.randn(20000).relu(),
    "negative": lambda: -torch.rand(20000) - 0.5,
    "with outliers": lambda: torch.cat([torch.randn(20000), torch.tensor([40.0, -55.0])]),
    "heavy tails": lambda: torch.randn(20000) / (torch.rand(20000) + 0.01),
    "constant": lambda: torch.full((100,), 0.7),
    "zeros": lambda: torch.zeros(100),
}
GRIDS = ((0, 255, False), (1, 255, True), (0, 15, False))


def counted(x: Tensor) -> tuple[Tensor, Tensor]:
    counts, exponent = ops.empty_histogram()
    ops.add_to_histogram_(counts, exponent, x)
    return counts, exponent


def chosen(x: Tensor, method: str, grid: tuple[int, int, bool], percentile: float = 99.9) -> tuple[float, float]:
    low, high = ops.histogram_range(*counted(x), method, percentile, *grid)
    return float(low), float(high)


def squared_error(x: Tensor, low: float, high: float, grid: tuple[int, int, bool]) -> float:
    """Of values and their fake quantization, by numpy from docs/numerics.md."""
    qmin, qmax, symmetric = grid
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(-low, high) / ((qmax - qmin) // 2) if symmetric else (high - low) / (qmax - qmin))
    scale = max(scale, np.float32(2.0**-40))
    zero = (qmin + qmax) // 2 if symmetric else np.clip(np.rint(qmin - low / scale), qmin, qmax)
    values = x.double().numpy()
    codes = np.clip(np.rint(values / scale) + zero, qmin, qmax)
    return float(np.square((codes - zero) * float(scale) - values).mean())


# Counting.


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    data=st.data(),
)
def test_batches_and_their_order_do_not_matter(values, cuts, data):
    whole = counted(torch.tensor(values))
    assert int(whole[0].sum()) == len(values)
    shuffled = torch.tensor(data.draw(st.permutations(values)))
    split, merged = ops.empty_histogram(), ops.empty_histogram()
    for part in shuffled.tensor_split(sorted(cuts)):
        ops.add_to_histogram_(*split, part)
        ops.merge_histogram_(*merged, *counted(part))
    assert equal_bits(whole, split) and equal_bits(whole, merged)


def test_every_value_lies_in_its_bin():
    x = torch.cat([torch.randn(5000), torch.tensor([-2.0, 2.0, 1.0, 0.0, -0.0, 2.0**-149, -(2.0**-149)])])
    counts, exponent = counted(x)
    width = 2.0 ** int(exponent)
    edges = (np.arange(8193) - 4096) * width
    wanted, _ = np.histogram(x.double().numpy(), edges)
    assert np.array_equal(counts.numpy(), wanted)
    assert 2048 * width <= float(x.abs().max()) < 4096 * width


def test_threads_count_alike():
    x = torch.randn(1_000_003)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(counted(x))
    torch.set_num_threads(threads)
    assert equal_bits(results[0], results[1]) and equal_bits(results[0], results[2])
    assert int(results[0][0].sum()) == x.numel()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_changes_nothing(value):
    counts, exponent = counted(torch.randn(100))
    before = counts.clone(), exponent.clone()
    ops.add_to_histogram_(counts, exponent, torch.tensor([1.0, value]))
    ops.add_to_histogram_(counts, exponent, torch.empty(0))
    assert equal_bits(before, (counts, exponent))


# The ranges.


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_the_data(method, data, grid):
    x = DATA[data]()
    low, high = chosen(x, method, grid)
    width = 2.0 ** int(counted(x)[1])
    if grid[2]:
        assert low == -high and 0 < high <= float(x.abs().max()) + width
    else:
        assert min(0.0, float(x.min())) - width <= low <= high <= max(0.0, float(x.max())) + width


@pytest.mark.parametrize("data", ["normal", "positive", "with outliers", "heavy tails"])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
def test_a_percentile_is_that_of_numpy(data, percentile):
    x = DATA[data]()
    low, high = chosen(x, "percentile", GRIDS[0], percentile)
    spare = (100 - percentile) / 2
    wanted = np.percentile(x.double().numpy(), [spare, 100 - spare])
    width = 2.0 ** int(counted(x)[1])
    near = x.double().numpy()
    assert low <= wanted[0] + width and high >= wanted[1] - width
    assert (near < low).mean() <= spare / 100 and (near > high).mean() <= spare / 100
    # A bin less at either end would leave out too much.
    assert (near < low + width).mean() > spare / 100 or low + width > wanted[0]
    assert (near >= high - width).mean() > spare / 100 or high - width < wanted[1]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("data", ["normal", "positive", "negative", "with outliers", "heavy tails"])
def test_the_least_squared_error_is_the_least_of_many_ranges(data, grid):
    """Against a brute-force search over both ends in float64 on the data themselves."""
    x = DATA[data]()
    low, high = (min(float(x.min()), 0.0), max(float(x.max()), 0.0))
    if grid[2]:
        radius = max(-low, high)
        candidates = [(-radius * f, radius * f) for f in np.linspace(0.01, 1, 100)]
    else:
        fractions = np.geomspace(0.03, 1, 24)
        candidates = [(low * f, high * g) for f in fractions for g in fractions]
    best = min(squared_error(x, *candidate, grid) for candidate in candidates)
    assert squared_error(x, *chosen(x, "mse", grid), grid) <= 1.05 * best + 1e-12


def divergence(x: Tensor, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped histogram from itself at so many levels, by numpy in float64."""
    counts, exponent = counted(x)
    edges = (np.arange(8193) - 4096) * 2.0 ** int(exponent)
    begin, end = np.searchsorted(edges, [low, high])
    inside = counts.numpy()[begin:end].astype(np.float64)
    p = inside.copy()
    p[0] += counts.numpy()[:begin].sum()
    p[-1] += counts.numpy()[end:].sum()
    bounds = [len(inside) * i // levels for i in range(levels + 1)]
    q = np.zeros_like(inside)
    for first, last in pairwise(bounds):
        occupied = p[first:last] > 0
        if occupied.any():
            q[first:last][occupied] = inside[first:last].sum() / occupied.sum()
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * np.log(p / q), 0.0).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("data", ["normal", "positive", "with outliers", "heavy tails"])
def test_the_least_divergence_is_the_least_of_all_cuts(data, grid):
    x = DATA[data]()
    levels = grid[1] - grid[0] + 1
    counts, exponent = counted(x)
    width = 2.0 ** int(exponent)
    occupied = counts.nonzero().flatten()
    first, last = (min(int(occupied[0]) - 4096, 0), max(int(occupied[-1]) - 4095, 0))
    radius = max(-first, last)
    cuts = [radius * part // 100 for part in range(1, 101)]
    ends = [(-c, c) if grid[2] else (max(-c, first), min(c, last)) for c in cuts]
    values = [divergence(x, a * width, b * width, levels) for a, b in ends if b - a >= levels]
    low, high = chosen(x, "entropy", grid)
    assert divergence(x, low, high, levels) <= min(values) * (1 + 1e-9)


def test_outliers_cost_no_resolution():
    """Two values of 20002 would take nine tenths of the codes of a min-max grid."""
    x = DATA["with outliers"]()
    usual = x[:-2]
    whole = squared_error(usual, float(x.min()), float(x.max()), GRIDS[0])
    for method in ("percentile", "entropy"):
        assert squared_error(usual, *chosen(x, method, GRIDS[0], 99.9), GRIDS[0]) < whole / 5


# Observers on their own.


@pytest.mark.parametrize("kind", OBSERVERS)
def test_an_observer_per_channel_is_one_for_each_channel(kind):
    x = torch.randn(6, 3, 5) * torch.tensor([1.0, 10.0, 0.01]).view(3, 1)
    observer = kind(channels=3, axis=1)
    assert torch.equal(observer(x), x)
    for channel in range(3):
        single = kind()
        single(x[:, channel])
        for all_of_them, one in zip(
            observer.calculate_qparams(-127, 127, True), single.calculate_qparams(-127, 127, True), strict=True
        ):
            assert torch.equal(all_of_them[channel], one)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_merged_observers_are_one_observer_of_all(kind):
    parts = [torch.randn(40), 30 * torch.randn(50)]
    whole, first, second = kind(), kind(), kind()
    for observer, seen in ((whole, parts), (first, parts[:1]), (second, parts[1:])):
        for part in seen:
            observer(part)
    first.merge(second)
    assert equal_bits(whole.state_dict(), first.state_dict())
    assert equal_bits(whole.calculate_qparams(0, 255), first.calculate_qparams(0, 255))


@pytest.mark.parametrize("kind", OBSERVERS)
def test_nothing_seen_is_the_empty_range(kind):
    observer = kind()
    assert [float(end) for end in observer.range(0, 255)] == [math.inf, -math.inf]
    assert float(observer.calculate_qparams(0, 255)[0]) == 1.0


def test_all_of_the_data_is_the_min_max_range_to_a_bin():
    x = torch.randn(1000)
    observer, extremes = PercentileObserver(100.0), MinMaxObserver()
    observer(extremes(x))
    low, high = observer.range(0, 255)
    width = 2.0 ** int(observer.exponent)
    assert 0 <= float(extremes.min - low) < width and 0 <= float(high - extremes.max) <= width


# Models.


def calibrated(observer: str, parts: list[Tensor]) -> octet.QATModel:
    model, _ = build("ResNet")
    recipe = octet.Recipe(activations=octet.Spec(observer=observer, percentile=99.0))
    qat = octet.prepare(model, (parts[0][:2],), recipe)
    octet.calibrate(qat, parts, progress=False)
    return qat


@pytest.mark.parametrize("method", METHODS)
def test_calibration_does_not_depend_on_the_batches(method):
    """The input's grid; what follows may round differently in batches of another size."""
    x = torch.randn(12, 3, 8, 8)
    x[3, 0, 0, :2] = 60.0
    whole, split = calibrated(method, [x]), calibrated(method, list(x.flip(0).split(5)))
    grid = whole.get_submodule("octet.x")
    assert equal_bits(grid.state_dict(), split.get_submodule("octet.x").state_dict())
    assert octet.verify(whole, octet.convert(whole), (x,))
    wide = calibrated("min_max", [x]).get_submodule("octet.x")
    assert grid.observer == method and (float(grid.max) < 0.5 * float(wide.max)) == (method == "percentile")


@pytest.mark.parametrize("method", METHODS)
def test_training_keeps_the_calibrated_ranges(method):
    model, inputs = build("ResNet")
    recipe = octet.Recipe(activations=octet.Spec(observer=method))
    qat = octet.prepare(model, inputs(2)[0], recipe)
    train(qat, inputs, steps=1)  # in float: the first forward observes
    before = {
        k: v.clone() for k, v in qat.state_dict().items() if k.startswith("octet.") and k.endswith((".min", ".max"))
    }
    assert all(value.isfinite() for value in before.values())
    train(qat, inputs, steps=2)
    assert all(torch.equal(qat.state_dict()[key], value) for key, value in before.items())
    assert octet.verify(qat, octet.convert(qat), *inputs(2))


def test_nan_in_calibration_leaves_the_histogram():
    model, _ = build("ResNet")
    qat = octet.prepare(model, (torch.randn(2, 3, 8, 8),), octet.Recipe(activations=octet.Spec(observer="mse")))
    x = torch.randn(4, 3, 8, 8)
    octet.calibrate(qat, [x], progress=False)
    good = copy.deepcopy(qat.state_dict())
    with pytest.raises(octet.errors.RangeError, match=r"got NaN or inf in 1 of 2 batches"):
        octet.calibrate(qat, [x, x * math.nan], progress=False)
    same = [torch.equal(qat.state_dict()[k], v) for k, v in good.items() if not k.endswith("nonfinite")]
    assert all(same)


def test_buffers_have_their_shapes_from_the_start_and_come_back():
    spec = octet.Spec(observer="entropy")
    grid = octet.nn.FakeQuantize(spec)
    assert grid.histogram.shape == (8192,) and grid.exponent.shape == ()
    grid.train()(torch.randn(100))
    other = octet.nn.FakeQuantize(spec)
    other.load_state_dict(grid.state_dict())
    assert equal_bits(grid.state_dict(), other.state_dict()) and other.ready
    assert "histogram" not in octet.nn.FakeQuantize().state_dict()


def test_specs_are_checked():
    with pytest.raises(ValueError, match=r"percentile must be in \(0, 100\] \(got 0\)"):
        octet.Spec(observer="percentile", percentile=0)
    with pytest.raises(ValueError, match=r"observer must be one of .* \(got 'kl'\)"):
        octet.Spec(observer="kl")
