"""The max pool of training: torch's values and gradient, a byte kept per output, codes that travel on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octet

ops = torch.ops.octet
POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
WINDOWS = {  # kernel, stride, padding, dilation, ceil_mode
    "usual": (3, 2, 1, 1, False),
    "disjoint": (2, 2, 0, 1, False),
    "dilated": (3, 1, 1, 2, False),
    "ceil": (3, 2, 0, 1, True),
    "more padding than stride": (5, 1, 2, 1, False),
}


def spread(windows: tuple, dims: int) -> tuple:
    return (*([v] * dims for v in windows[:4]), windows[4])


@pytest.mark.parametrize("dims", POOLS)
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_values_and_gradient_are_torchs(windows: tuple, dims: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 5, *[9] * dims) * 4).round().requires_grad_()  # with equal values
    kernel, stride, padding, dilation, ceil_mode = windows
    expected = POOLS[dims](x, kernel, stride, padding, dilation, ceil_mode)
    y = ops.max_pool(x, *spread(windows, dims))
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(v, x, grad)[0] for v in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # sums in another order


def test_nan_and_infinity_pass() -> None:
    x = torch.randn(2, 3, 8, 8)
    x[0, 1, 4, 4], x[1, :, :4] = torch.nan, -torch.inf
    y, expected = ops.max_pool(x, *spread(WINDOWS["usual"], 2)), F.max_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_large_windows(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 20, 20).to(dtype)
    assert torch.equal(ops.max_pool(x, *spread(WINDOWS["usual"], 2)), F.max_pool2d(x, 3, 2, 1))
    x = x.float()
    assert torch.equal(ops.max_pool(x, *spread((17, 1, 0, 1, False), 2)), F.max_pool2d(x, 17, 1))


def test_refuses_a_window_that_does_not_fit() -> None:
    with pytest.raises(RuntimeError, match="max_pool: the window must not be larger than the padded input"):
        ops.max_pool(torch.zeros(1, 1, 2, 2), [3, 3], [1, 1], [0, 0], [1, 1], False)


def test_keeps_a_byte_per_output() -> None:
    kept: list[Tensor] = []
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ops.max_pool(x, *spread(WINDOWS["usual"], 2))
    assert sum(t.nbytes for t in kept) == y.numel()


def test_codes_travel_with_the_values() -> None:
    grid = (torch.tensor(0.02), torch.tensor(100, dtype=torch.int32), 0, 255)
    block = (torch.randn(8, 4, 1, 1), None, *[None] * 4, 1e-5, [1], [0], [1], 1, 0, 8, True)
    x = ops.fake_quantize_per_tensor(torch.randn(2, 4, 9, 9), *grid)
    y = ops.conv_block(x, *block, *grid, *grid, True, True, False)[0]  # comes with its codes
    pooled = ops.max_pool(y, *spread(WINDOWS["usual"], 2))
    codes = ops._input_codes(pooled, *grid)[0]
    assert torch.equal(codes, ops.quantize_per_tensor(pooled, *grid, torch.uint8))


def test_opcheck() -> None:
    x = torch.randn(2, 3, 8, 8)
    windows = spread(WINDOWS["usual"], 2)
    torch.library.opcheck(ops._max_pool.default, (x, *windows))
    y, winners = ops._max_pool(x, *windows)
    torch.library.opcheck(ops._max_pool_backward.default, (torch.randn_like(y), winners, x.shape, *windows))
    torch.library.opcheck(ops.max_pool.default, (x.requires_grad_(), *windows))


class Pooled(nn.Module):
    """One pool as a module, called twice, and one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return F.max_pool2d(self.pool(self.pool(x)), 3, 2, 1)


def test_prepared_pools_keep_bytes_and_convert() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    qat = octet.prepare(Pooled(), (x,)).train()
    assert sum(isinstance(m, octet.nn.MaxPool) for m in qat.modules()) == 3
    for _ in range(3):
        qat(x).sum().backward()
    qat.eval()
    with torch.no_grad():
        assert torch.equal(qat(x), octet.convert(qat)(x))
