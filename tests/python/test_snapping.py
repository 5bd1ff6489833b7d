"""Tie-free multipliers (rule 7) cost no accuracy: the same networks with them and with the ideal ones."""

import copy

import pytest
import torch

import octet
from data import load
from network import ResNet, accuracy, logits, train


def without_snapping(qat: torch.nn.Module, int8: torch.nn.Module) -> torch.nn.Module:
    """A copy of `int8` whose layers have the ideal multiplier sx * sw * |gain| / sy, and the bias that goes with it."""
    state = int8.state_dict()
    blocks = {
        name.removeprefix("octet."): block
        for name, block in qat.named_modules()
        if isinstance(block, octet.nn.NormBlock)
    }
    for name, module in int8.named_modules():
        if not isinstance(module, (octet.nn.int8.Conv2d, octet.nn.int8.Linear)) or name not in blocks:
            continue
        block = blocks[name]
        layer = block.conv if hasattr(block, "conv") else block.linear
        gain, shift = torch.ones(len(layer.weight)).double(), torch.zeros(len(layer.weight)).double()
        if block.bn is not None:
            gain = block.bn.weight.double() / (block.bn.running_var.double() + block.bn.eps).sqrt()
            shift = block.bn.bias.double() - block.bn.running_mean.double() * gain
        bias = shift if layer.bias is None else shift + layer.bias.double() * gain
        weight_scale = layer.weight.flatten(1).abs().amax(1).double() / 127 * gain.abs()
        ideal = float(block.input.scale) * weight_scale / float(block.output.scale)
        assert ideal.min() > 1 / 4095, f"{name}: a multiplier so small has other codes as well"
        torch.testing.assert_close(module.multiplier.double(), ideal, rtol=5e-4, atol=0)
        state[f"{name}.multiplier"] = ideal.detach().float()
        state[f"{name}.bias"] = (bias / (float(block.input.scale) * weight_scale)).round().detach().int()
    free = copy.deepcopy(int8)
    free.load_state_dict(state)
    return free


@pytest.fixture(scope="module")
def accuracies():
    """(with, without) snapping in percent, for three seeds."""
    pairs = []
    for seed in range(3):
        torch.manual_seed(seed)
        training, test = load("digits")
        model = ResNet(8)
        train(model, training, 8, 0.1, seed, label=f"seed {seed}")
        qat = octet.prepare(model, (training.images[:2],))
        octet.calibrate(qat, [(training.images[:256],)])
        int8 = octet.convert(qat)
        snapped, free = logits(int8, test), logits(without_snapping(qat.eval(), int8), test)
        assert not torch.equal(snapped, free), "both are the same network"
        pairs.append((accuracy(snapped, test), accuracy(free, test)))
    return torch.tensor(pairs)


def test_snapping_costs_no_accuracy(accuracies):
    assert accuracies.min() > 90, "networks that do not work prove nothing"
    loss = accuracies[:, 1] - accuracies[:, 0]
    assert loss.max() <= 0.34, f"two of 599 images at most: {accuracies.tolist()}"
    assert loss.mean() <= 0.12, f"mean of three seeds: {accuracies.tolist()}"
