"""What only moves codes runs inside of the network: no part of the model is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octet
from octet.network import Network


class Between(nn.Module):
    """`move` between two convolutions of its input's and of its own number of channels."""

    def __init__(self, move, channels: int = 8) -> None:
        super().__init__()
        self.move = move
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.move(self.first(x)))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a], 1)


def space_to_depth(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def rows_as_channels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1, 3).contiguous()


MOVES = {
    "channel shuffle by hand": (shuffle, 8),
    "nn.ChannelShuffle": (nn.ChannelShuffle(4), 8),
    "chunk": (halves, 8),
    "split": (lambda x: torch.cat(x.split(3, 1)[::-1], 1), 8),
    "split in given sizes": (lambda x: x.split([1, 5, 2], 1)[1], 5),
    "unbind": (lambda x: torch.cat([part.unsqueeze(1) for part in x.unbind(1)[2:5]], 1), 3),
    "slices with steps": (space_to_depth, 32),
    "narrow": (lambda x: x.narrow(1, 2, 4), 4),
    "select and unsqueeze": (lambda x: x[:, 3].unsqueeze(1), 1),
    "permute": (rows_as_channels, 6),
    "swapped dimensions": (lambda x: x.transpose(-1, -2), 8),
    "pixel shuffle": (nn.PixelShuffle(2), 2),
    "zero padding": (nn.ZeroPad2d((1, 0, 2, 1)), 8),
    "negative padding": (lambda x: nn.functional.pad(x, (-1, 1, 1, -2)), 8),
    "nearest upsampling": (nn.Upsample(scale_factor=2), 8),
    "nearest upsampling to a size": (lambda x: nn.functional.interpolate(x, size=(12, 18)), 8),
    "flatten and unflatten": (nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6))), 8),
    "reshape": (lambda x: x.reshape(x.size(0), 16, 3, -1), 16),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_are_steps_of_one_network(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    move, channels = MOVES[name]
    x = torch.randn(7, 3, 6, 6)
    qat = octet.prepare(Between(move, channels).eval(), (x,))
    octet.calibrate(qat, [x])
    int8 = octet.convert(qat)
    assert all(row.int8 for row in qat.rows), octet.report(int8)
    networks = [type(module) for module in int8.lowered().modules() if not isinstance(module, Network)]
    assert len(networks) == 1, "only the graph itself"
    octet.export.torchscript(int8, (x,), tmp_path / "model.ts")
    octet.save(int8, tmp_path / "model.octet")
    scripted, loaded = torch.jit.load(tmp_path / "model.ts"), octet.load(tmp_path / "model.octet")
    for batch in (x, x[:1], x[:3].contiguous(memory_format=torch.channels_last), x[:0]):
        expected = int8._forward_by_module(batch)
        assert torch.equal(int8(batch), expected)
        assert torch.equal(scripted(batch), expected) and torch.equal(loaded(batch), expected)
        if len(batch):
            assert torch.equal(qat(batch), expected)


def test_models_loaded_for_training_convert_to_one_network(tmp_path) -> None:
    x = torch.randn(2, 3, 6, 6)
    qat = octet.prepare(Between(shuffle).eval(), (x,))
    octet.calibrate(qat, [x])
    octet.save(qat, tmp_path / "qat.octet")
    int8 = octet.convert(octet.load(tmp_path / "qat.octet"))
    assert torch.equal(int8(x), qat(x))
    assert sum(isinstance(module, Network) for module in int8.lowered().modules()) == 1


def test_what_mixes_the_batch_stays_with_torch() -> None:
    def windows(x: Tensor) -> Tensor:
        return x.unflatten(3, (2, 3)).permute(0, 3, 1, 2, 4).flatten(0, 1)

    x = torch.randn(2, 3, 6, 6)
    qat = octet.prepare(Between(windows).eval(), (x,))
    octet.calibrate(qat, [x])
    int8 = octet.convert(qat)
    assert torch.equal(int8(x), qat(x)) and int8(x).shape == (4, 4, 6, 3)
    assert torch.equal(int8(x[:1]), qat(x[:1]))
