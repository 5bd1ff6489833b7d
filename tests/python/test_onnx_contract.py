"""The contract on an independent runtime: multipliers by rule 7, scales by rule 9, and ONNX Runtime gives our bits.

Each case draws a layer and at least 10^6 outputs and demands 0 differences; it also checks that the runtime really ran
its integer operator and did not fall back to float between a dequantize and a quantize.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import octet  # noqa: F401  registers the ops
from onnx_layers import Grid, QdqModel, run

OUTPUTS = 1_000_000
SEEDS = [0, 1, 2]


def random_grid(rng: np.random.Generator) -> Grid:
    return Grid(np.float32(np.exp(rng.uniform(-7, 2))), int(rng.integers(0, 256)))


def random_codes(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def fold(rng: np.random.Generator, weight: torch.Tensor, x: Grid, spread: float):
    """An output grid that the layer fills, integer parameters by our own `fold`, weight scales sw' = m * sy / sx."""
    fan_in = weight[0].numel()
    deviation = float(x.scale) * 74 * float(weight.std()) * fan_in**0.5
    y = Grid(np.float32(spread * deviation / 64), int(rng.integers(0, 256)))
    bias = torch.from_numpy(rng.normal(0, deviation / 4, len(weight)).astype(np.float32))
    sx, sy = torch.tensor(float(x.scale)), torch.tensor(float(y.scale))
    codes, bias, multiplier = torch.ops.octet.fold(weight, bias, None, None, None, None, 0.0, sx, sy, 8, True)
    scale = (multiplier.double().numpy() * float(y.scale) / float(x.scale)).astype(np.float32)
    return y, codes, bias, multiplier, scale


def batch_for(channels, image, kernel, stride, padding, dilation=(1, 1)) -> int:
    """How many images make OUTPUTS outputs."""
    spans = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(image, padding, dilation, kernel, strict=True)]
    height, width = ((span - 1) // step + 1 for span, step in zip(spans, stride, strict=True))
    return int(np.ceil(OUTPUTS / (channels * height * width)))


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray):
    assert ours.dtype == torch.uint8
    assert ours.shape == theirs.shape
    assert ours.numel() >= OUTPUTS
    assert ours.unique().numel() > 64, "the layer leaves most of its range unused, which would prove little"
    assert int((ours.numpy() != theirs).sum()) == 0


CONVOLUTIONS = {
    # channels in, out, kernel, stride, padding, dilation, groups, image
    "1x1": (64, 64, (1, 1), (1, 1), (0, 0), (1, 1), 1, (32, 32)),
    "3x3": (32, 48, (3, 3), (1, 1), (1, 1), (1, 1), 1, (24, 25)),
    "strided": (24, 40, (5, 3), (2, 2), (2, 1), (1, 1), 1, (47, 49)),
    "dilated": (16, 32, (3, 3), (1, 1), (2, 2), (2, 2), 1, (30, 31)),
    "grouped": (32, 64, (3, 3), (1, 1), (0, 0), (1, 1), 4, (26, 26)),
    "depthwise": (64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 64, (31, 29)),
    "depthwise strided": (96, 96, (3, 3), (2, 2), (1, 1), (1, 1), 96, (56, 57)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, seed):
    cin, cout, kernel, stride, padding, dilation, groups, image = CONVOLUTIONS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    x = random_grid(rng)
    # Channels of very different size, as batch norm leaves them: some multipliers are tiny.
    weight = rng.normal(0, 1, (cout, cin // groups, *kernel)) * np.exp(rng.normal(0, 1, (cout, 1, 1, 1)))
    y, codes, bias, multiplier, scale = fold(rng, torch.from_numpy(weight.astype(np.float32)), x, rng.uniform(0.5, 2))
    batch = batch_for(cout, image, kernel, stride, padding, dilation)
    qx = random_codes(rng, batch, cin, *image)
    ours = torch.ops.octet.int8_conv(
        qx, codes, bias, multiplier, stride, padding, dilation, groups, x.zero_point, y.zero_point, 0, 255
    )
    model = QdqModel()
    inputs = [model.input("x", x), model.weight(codes.numpy(), scale), model.bias(bias.numpy(), x.scale * scale)]
    attributes = dict(kernel_shape=kernel, strides=stride, pads=padding * 2, dilations=dilation, group=groups)
    theirs, executed = run(model.build(model.node("Conv", inputs, "conv", **attributes), y), qx.numpy())
    assert executed["QLinearConv"] == 1, executed
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("features", [(512, 128), (37, 1001), (1, 64)], ids=str)
def test_linear(features, seed):
    rng = np.random.default_rng([seed, *features])
    x = random_grid(rng)
    weight = rng.normal(0, 1, features[::-1]) * np.exp(rng.normal(0, 1, (features[1], 1)))
    y, codes, bias, multiplier, scale = fold(rng, torch.from_numpy(weight.astype(np.float32)), x, rng.uniform(0.5, 2))
    qx = random_codes(rng, int(np.ceil(OUTPUTS / features[1])), features[0])
    ours = torch.ops.octet.int8_linear(qx, codes, bias, multiplier, x.zero_point, y.zero_point, 0, 255)
    model = QdqModel()
    inputs = [model.input("x", x), model.weight(codes.numpy(), scale), model.bias(bias.numpy(), x.scale * scale)]
    theirs, executed = run(model.build(model.node("Gemm", inputs, "gemm", transB=1), y), qx.numpy())
    assert executed["QGemm"] == 1, executed
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("op, sign", [("Add", 1), ("Sub", -1)])
def test_add_and_sub_see_every_pair_of_codes(op, sign, seed):
    """All 65,536 pairs of codes for each of 16 triples of tied scales (rule 9b: odd multiples of one unit)."""
    rng = np.random.default_rng([seed, sign + 1])
    pairs = np.arange(65536, dtype=np.uint32)
    qa, qb = torch.from_numpy((pairs >> 8).astype(np.uint8)), torch.from_numpy((pairs & 255).astype(np.uint8))
    ours, theirs = [], []
    for _ in range(16):
        unit = np.float32(np.exp(rng.uniform(-12, -2)))
        na, nb = (int(n) for n in 2 * rng.integers(10, 512, 2) + 1)
        nc = 2 * int(rng.integers(max(na, nb) // 2, min(na + nb, 1023) // 2 + 1)) + 1
        a, b, c = (Grid(np.float32(n * unit), int(rng.integers(0, 256))) for n in (na, nb, nc))
        ours.append(
            torch.ops.octet.int8_add(
                qa,
                qb,
                a.zero_point,
                float(np.float32(na / nc)),
                b.zero_point,
                sign * float(np.float32(nb / nc)),
                c.zero_point,
                0,
                255,
            )
        )
        model = QdqModel()
        value = model.node(op, [model.input("a", a), model.input("b", b)], "sum")
        output, executed = run(model.build(value, c), qa.numpy(), qb.numpy())
        # The runtime has an integer Add; its Sub stays dequantize, subtract, quantize in float, which must agree too.
        assert executed["QLinearAdd" if op == "Add" else "Sub"] == 1, executed
        theirs.append(output)
    assert_same_bits(torch.stack(ours), np.stack(theirs))


POOLS = {
    # kernel, stride, padding
    "2x2": ((2, 2), (2, 2), (0, 0)),
    "3x3 padded": ((3, 3), (1, 1), (1, 1)),
    "5x4 strided": ((5, 4), (2, 3), (2, 1)),
    "7x7": ((7, 7), (7, 7), (0, 0)),
}


def images(rng: np.random.Generator, batch: int, channels: int, *size: int) -> torch.Tensor:
    """Codes whose level and contrast differ from plane to plane: the means of plain noise would be alike."""
    low, high = np.sort(rng.uniform(0, 256, (2, batch, channels, 1, 1)), axis=0)
    return torch.from_numpy(
        (low + (high - low) * rng.random((batch, channels, *size), dtype=np.float32)).astype(np.uint8)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", POOLS)
def test_average_pool_is_a_depthwise_convolution_with_codes_1(name, seed):
    kernel, stride, padding = POOLS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    channels, image, window = 32, (42, 44), int(np.prod(kernel))
    x = random_grid(rng)
    y = Grid(np.float32(x.scale * np.exp(rng.uniform(-1.5, 0.5))), int(rng.integers(0, 256)))
    qx = images(rng, batch_for(channels, image, kernel, stride, padding), channels, *image)
    grids = float(x.scale), x.zero_point, float(y.scale), y.zero_point
    ours = torch.ops.octet.int8_avg_pool(qx, kernel, stride, padding, False, True, 0, *grids, 0, 255)
    multiplier = snapped(float(x.scale) / window / float(y.scale))
    scale = np.full(channels, multiplier * float(y.scale) / float(x.scale), np.float32)
    model = QdqModel()
    inputs = [model.input("x", x), model.weight(np.ones((channels, 1, *kernel), np.int8), scale)]
    attributes = dict(kernel_shape=kernel, strides=stride, pads=padding * 2, group=channels)
    theirs, executed = run(model.build(model.node("Conv", inputs, "pool", **attributes), y), qx.numpy())
    assert executed["QLinearConv"] == 1, executed
    assert_same_bits(ours, theirs)


def snapped(ideal: float) -> float:
    """Rule 7, written again independently: the nearest fraction with an odd denominator up to 4095."""
    q = np.arange(1, 4096, 2)
    p = np.rint(ideal * q)
    best = np.argmin(np.abs(ideal - p / q))
    return p[best] / q[best]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name, seed):
    kernel, stride, padding = POOLS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    grid = random_grid(rng)
    qx = images(rng, batch_for(32, (42, 44), kernel, stride, padding), 32, 42, 44)
    ours = torch.ops.octet.int8_max_pool(qx, kernel, stride, padding, (1, 1), False)
    model = QdqModel()
    value = model.node(
        "MaxPool", [model.input("x", grid)], "pool", kernel_shape=kernel, strides=stride, pads=padding * 2
    )
    theirs, _ = run(model.build(value, grid), qx.numpy())
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_concat_on_one_grid_moves_codes_only(seed):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng)
    qa, qb = random_codes(rng, 40, 24, 23, 25), random_codes(rng, 40, 40, 23, 25)
    model = QdqModel()
    value = model.node("Concat", [model.input("a", grid), model.input("b", grid)], "concat", axis=1)
    theirs, _ = run(model.build(value, grid), qa.numpy(), qb.numpy())
    assert_same_bits(torch.cat([qa, qb], 1), theirs)
