"""Two processes with gloo: ranges, batch norm over all batches, wrapped and converted models, one that diverges.

Two processes run all scenarios once; the tests compare what they left with each other and with one process alone.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import octet
from helpers import equal_bits
from octet import ops
from octet.errors import StateDictError

WORLD = 2
TIMEOUT = 240  # seconds for all scenarios; a process that waits for ever fails the tests, not the suite
OBSERVERS = ("min_max", "moving_average", "percentile", "mse", "entropy")
ROWS = {"even": (4, 4), "uneven": (5, 3), "one empty": (8, 0)}


class Network(nn.Module):
    """A residual block, a linear layer with batch norm, and a batch norm that follows no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.bn3 = nn.BatchNorm2d(8)
        self.linear, self.bn4 = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.bn3(torch.relu(self.bn2(self.conv2(x)) + x))
        return self.bn4(self.linear(x.mean((2, 3))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def prepared(sync_bn: bool = True, fake_quantize: bool = True) -> octet.QATModel:
    qat = octet.prepare(network(), (torch.randn(2, 3, 6, 6),))
    octet.set_mode(qat, sync_bn=sync_bn, fake_quantize=fake_quantize)
    return qat.train()


def batches(steps: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    scales = torch.linspace(0.5, 3, 8).view(8, 1, 1, 1)  # the halves differ much in mean and range
    return [torch.randn(8, 3, 6, 6, generator=generator) * scales + scales for _ in range(steps)]


def part(batch: Tensor, rank: int | None, rows: tuple[int, int] = (4, 4)) -> Tensor:
    return batch if rank is None else batch.split(rows)[rank]


def train(model: nn.Module, rank: int | None) -> list[Tensor]:
    """Each process on its half, or one on the whole; gives the outputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    outputs = []
    for batch in batches():
        y = model(part(batch, rank))
        optimizer.zero_grad()
        (y - part(torch.arange(8.0)[:, None], rank)).square().mean().backward()
        optimizer.step()
        outputs.append(y.detach())
    return outputs


# Scenarios: each process runs all of them and keeps the results.


def train_under_ddp(rank: int | None, fake_quantize: bool) -> dict[str, Tensor]:
    qat = prepared(fake_quantize=fake_quantize)
    outputs = train(qat if rank is None else DistributedDataParallel(qat), rank)
    return {"outputs": torch.stack(outputs), **qat.state_dict()}


def local_statistics(rank: int | None) -> dict[str, Tensor]:
    qat = prepared(sync_bn=False)
    with torch.no_grad():
        for batch in batches():
            qat(part(batch, rank))
    return qat.state_dict()


def synced_block(rank: int | None, rows: str, fake_quantize: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """A convolution block alone, with gradients; parameters' gradients summed over the processes."""
    torch.manual_seed(1)
    x, grad = torch.randn(8, 3, 5, 4, dtype=dtype) + 1, torch.randn(8, 4, 5, 4, dtype=dtype)
    weight, gamma, beta = (torch.randn(*shape, dtype=dtype) for shape in ((4, 3, 3, 3), (4,), (4,)))
    input, output = (
        (torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), 0, 255) for scale, zero in ((0.03, 80), (0.05, 90))
    )
    x = ops.fake_quantize_per_tensor(x, *input)
    x, grad = (part(t, rank, ROWS[rows]).clone() for t in (x, grad))
    leaves = [t.requires_grad_() for t in (x, weight, gamma, beta)]
    group = "" if rank is None else dist.group.WORLD.group_name
    norm = (gamma, beta, None, None, 1e-5)
    flags = (fake_quantize, True, True, False, group)
    y, low, high, mean, var, count = ops.conv_block(
        x, weight, None, *norm, [1], [1], [1], 1, 1, 8, True, *input, *output, *flags
    )
    grads = torch.autograd.grad(y, leaves, grad)
    if rank is not None:
        for g in grads[1:]:
            dist.all_reduce(g)
    names = ("x", "weight", "gamma", "beta")
    running_mean, running_var = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    ops.update_batch_norm_(running_mean, running_var, mean, var, count, 0.1)
    result = {"y": y.detach(), "low": low, "high": high, "mean": mean, "var": var, "count": count}
    return {**result, "running_var": running_var, **dict(zip(names, grads, strict=True))}


def synced_classes(rank: int) -> list[dict[str, Tensor]]:
    """The running statistics and ranges with set_mode, with torch's class before prepare, and with it after."""
    before = octet.prepare(nn.SyncBatchNorm.convert_sync_batchnorm(network()), (torch.randn(2, 3, 6, 6),))
    after = nn.SyncBatchNorm.convert_sync_batchnorm(prepared(sync_bn=False))
    after = copy.deepcopy(after)
    states = []
    for qat in (prepared(), before, after):
        qat.train()
        with torch.no_grad():
            for batch in batches():
                qat(part(batch, rank))
        assert not torch.equal(qat.eval()(batches()[0]), qat.train()(batches()[0]))
        states.append(qat.state_dict())
    return states


def diverge_on_one(rank: int) -> dict[str, Tensor]:
    qat = prepared()
    with torch.no_grad():
        for step, batch in enumerate(batches(4)):
            y = qat(part(batch, rank) * (torch.nan if step == 2 and rank == 1 else 1))
            assert y.isnan().any() == (step == 2)
    return {key: value for key, value in qat.state_dict().items() if key.startswith("octet.")}


def calibrate(rank: int | None, observer: str) -> dict[str, Tensor]:
    recipe = octet.Recipe(activations=octet.Spec(observer=observer, percentile=99.0))
    qat = octet.prepare(network(), (torch.randn(2, 3, 6, 6),), recipe)
    octet.calibrate(qat, [part(batch, rank) for batch in batches()], progress=False)
    return {key: value for key, value in qat.state_dict().items() if key.startswith("octet.")}


BLOCKS = [(rows, fake, dtype) for rows in ROWS for fake in (False, True) for dtype in (torch.float32, torch.float64)]


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    results = {
        "float": train_under_ddp(rank, fake_quantize=False),
        "quantized": train_under_ddp(rank, fake_quantize=True),
        "local": local_statistics(rank),
        "classes": synced_classes(rank),
        "diverged": diverge_on_one(rank),
        **{observer: calibrate(rank, observer) for observer in OBSERVERS},
        "blocks": [synced_block(rank, *block) for block in BLOCKS],
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process left."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(_run, (str(folder),), nprocs=WORLD, join=False)
    end = time.monotonic() + TIMEOUT
    while not context.join(timeout=5):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the processes did not end within {TIMEOUT} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def grids(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith("octet.")}


@pytest.mark.parametrize("name", ["float", "quantized", "diverged", *OBSERVERS])
def test_grids_are_the_same_on_all_processes(ranks, name):
    first, second = (grids(rank[name]) for rank in ranks)
    assert any(key.endswith(".scale") for key in first)
    assert equal_bits(first, second)


def test_weights_and_statistics_are_the_same_on_all_processes(ranks):
    for name in ("float", "quantized"):
        first, second = ({k: v for k, v in rank[name].items() if k != "outputs"} for rank in ranks)
        assert equal_bits(first, second)


def test_two_halves_train_like_the_whole(ranks):
    """In float: after three steps the weights, statistics and ranges of one process on the whole batch."""
    whole = train_under_ddp(None, fake_quantize=False)
    outputs = torch.cat([rank["float"].pop("outputs") for rank in ranks], 1)
    torch.testing.assert_close(outputs, whole.pop("outputs"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ranks[0]["float"], whole, rtol=1e-4, atol=1e-5)


def test_two_halves_train_like_the_whole_on_grids(ranks):
    """Fake-quantized, a rounding error may move a code by one step, and the step shows in what follows."""
    whole = train_under_ddp(None, fake_quantize=True)
    outputs = torch.cat([rank["quantized"]["outputs"] for rank in ranks], 1)
    step = whole["octet.linear.output.scale"]
    assert (outputs - whole["outputs"]).abs().max() <= 2 * step
    for key, value in whole.items():
        if value.is_floating_point() and key != "outputs":
            torch.testing.assert_close(ranks[0]["quantized"][key], value, rtol=2e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"{r}-{f}-{d}" for r, f, d in BLOCKS])
def test_a_synced_block_is_the_block_of_the_whole_batch(ranks, number):
    _, fake_quantize, dtype = BLOCKS[number]
    whole = synced_block(None, *BLOCKS[number])
    parts = [rank["blocks"][number] for rank in ranks]
    joined = {key: torch.cat([p[key] for p in parts]) if key in ("y", "x") else parts[0][key] for key in whole}
    joined["low"], joined["high"] = (
        torch.stack([p[k] for p in parts]).aminmax()[i] for i, k in enumerate(("low", "high"))
    )
    assert int(joined["count"]) == 8 * 5 * 4
    tolerance = 1e-9 if dtype is torch.float64 and not fake_quantize else 1e-4  # a weight meets its grid in float32
    if fake_quantize:
        steps = (joined.pop("y") - whole.pop("y")) / 0.05
        assert steps.abs().max() < 1.001 and (steps.abs() > 0.5).double().mean() < 0.01
    torch.testing.assert_close(joined, whole, rtol=tolerance, atol=tolerance)


def test_statistics_are_local_unless_asked(ranks):
    first, second = (rank["local"] for rank in ranks)
    assert not torch.equal(first["bn1.running_mean"], second["bn1.running_mean"])
    assert equal_bits(grids(first), grids(second))  # ranges are not


def test_torch_class_before_or_after_prepare_is_the_mode(ranks):
    for rank in ranks:
        mode, before, after = rank["classes"]
        assert equal_bits(mode, before) and equal_bits(mode, after)


def test_nan_on_one_process_shows_on_all_and_poisons_none(ranks):
    """With batch norm over all processes it shows in every output; no process waits for ever."""
    for rank in ranks:
        state = rank["diverged"]
        assert all(value.isfinite().all() for key, value in state.items() if key.endswith((".min", ".max", ".scale")))
        assert all(int(value) == 1 for key, value in state.items() if key.endswith(".nonfinite"))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_calibration_of_parts_is_calibration_of_the_whole(ranks, observer):
    """For the input bit for bit, with histograms too; behind a convolution, which may round differently, to a bin."""
    parts, whole = ranks[0][observer], calibrate(None, observer)
    of_input = {key: value for key, value in whole.items() if key.startswith("octet.x.")}
    assert equal_bits(of_input, {key: parts[key] for key in of_input})
    for key, value in whole.items():
        if key.endswith((".min", ".max")):
            torch.testing.assert_close(parts[key], value, rtol=1e-2, atol=1e-5, msg=key)


def test_a_replaced_batch_norm_follows_the_mode():
    qat = nn.SyncBatchNorm.convert_sync_batchnorm(prepared(sync_bn=False))
    block = qat.get_submodule("octet.conv1")
    assert block.bn is qat.bn1 and isinstance(block.bn, nn.SyncBatchNorm)
    assert block.batch_stats and not qat.eval().get_submodule("octet.conv1").batch_stats
    x = batches()[0]
    qat.train()(x)
    qat(x)
    int8 = octet.convert(qat.eval())
    assert octet.verify(qat, int8, (x,))


def test_a_wrapped_model_takes_all_of_a_state_or_nothing():
    qat = prepared()
    qat(batches()[0])
    wrapped = nn.ModuleDict({"module": qat})
    state = wrapped.state_dict()
    other = prepared()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(StateDictError, match=r"module\."):
        other.load_state_dict(state)
    assert equal_bits(before, other.state_dict())
