"""A whole training step of a prepared model through torch's own machinery: compilation and gradient checkpointing."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import octet


class Network(nn.Module):
    """Blocks with batch norm and without, a residual add, a max pool, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).relu().mean((2, 3)))


def network(*, observe: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 12, 12)
    qat = octet.prepare(Network(), (x,)).train()
    with torch.no_grad():
        qat(x)  # the first forward only observes
    octet.set_mode(qat, observe=observe)
    return qat, x


def gradients(qat: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [p.grad for p in qat.parameters()]


def test_compiled_steps_train_as_eager_ones() -> None:
    qat, x = network(observe=True)
    other = copy.deepcopy(qat)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    expected = gradients(qat, qat(x).square().sum())
    torch.testing.assert_close(gradients(other, compiled(x).square().sum()), expected)
    torch.testing.assert_close(other.state_dict(), qat.state_dict())


def test_checkpointing_a_model_of_fixed_ranges_gives_its_gradients() -> None:
    qat, x = network(observe=False)
    other = copy.deepcopy(qat)
    expected = gradients(qat, qat(x).square().sum())
    for reentrant in (False, True):
        other.zero_grad()
        inputs = x.clone().requires_grad_()  # reentrant checkpoints want an input with a gradient
        again = gradients(other, checkpoint(other, inputs, use_reentrant=reentrant).square().sum())
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
