"""Timing that survives a busy machine, and the bytes autograd keeps."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Call = Callable[[], object]


def interleave(calls: dict[str, Call], rounds: int, warm_up: int = 2) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of every call, taken in turns: a disturbance meets all of them."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def report(times: dict[str, list[tuple[float, float]]], reference: str) -> None:
    """A table: minimum and median in ms, and the minimum over the reference's, by the clock and by CPU time."""
    smallest = [min(t[kind] for t in times[reference]) for kind in (0, 1)]
    print(f"| {'':24} | min ms | median ms | x {reference} | x in CPU time |\n|---|---|---|---|---|")
    for name, samples in times.items():
        wall, cpu = [t[0] for t in samples], [t[1] for t in samples]
        ratios = f"{min(wall) / smallest[0]:.2f} | {min(cpu) / smallest[1]:.2f}"
        print(f"| {name:24} | {min(wall) * 1e3:.2f} | {statistics.median(wall) * 1e3:.2f} | {ratios} |")


def saved_bytes(forward: Call, known: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages a forward keeps for backward, `known` ones aside."""
    storages = {t.untyped_storage().data_ptr(): 0 for t in known}
    kept = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        kept.append(storage)  # so that no address is used again while we count
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = forward()
    del result
    return sum(storages.values())


def environment() -> str:
    isa = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()} {isa}, {torch.get_num_threads()} threads"
