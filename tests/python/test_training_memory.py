"""What a prepared model keeps for backward, against the FP32 model."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octet


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.second(self.first(x)) + x)
        return self.head(x.mean((2, 3)))


def saved_bytes(forward: Callable[[], object], known: list[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): 0 for t in known}
    kept = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        kept.append(storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = forward()
    del result
    return sum(storages.values())


def prepared(model: nn.Module, x: Tensor, low_memory: bool) -> nn.Module:
    qat = octet.prepare(model, (x,), low_memory=low_memory).train()
    with torch.no_grad():
        qat(x)  # the first forward only observes
    return qat


def test_keeps_less_than_fp32() -> None:
    model, x = Residual().train(), torch.randn(8, 3, 32, 32)
    networks = [model, prepared(model, x, False), prepared(model, x, True)]
    fp32, usual, lean = (saved_bytes(lambda n=n: n(x).sum(), [*n.parameters(), *n.buffers(), x]) for n in networks)
    assert usual <= 0.75 * fp32
    assert lean <= 0.25 * fp32


def test_low_memory_trains_to_the_same_bits() -> None:
    model, x = Residual().train(), torch.randn(4, 3, 16, 16)
    gradients = []
    for low_memory in (False, True):
        qat = prepared(copy.deepcopy(model), x, low_memory)
        qat(x).square().sum().backward()
        gradients.append([p.grad for p in qat.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
