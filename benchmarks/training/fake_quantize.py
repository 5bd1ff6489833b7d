"""Fake quantization, forward and with backward: octet, ATen, and torch.mul as the memory's yardstick.

python benchmarks/training/fake_quantize.py --threads 1
"""

from __future__ import annotations

import argparse

import torch
from measure import Call, environment, interleave, report
from torch import Tensor

import octet.cpu

SCALE, ZERO = torch.tensor(0.02), torch.tensor(128, dtype=torch.int32)


def activations(x: Tensor) -> dict[str, Call]:
    out = torch.empty_like(x)
    return {
        "torch.mul": lambda: torch.mul(x, 1.5),
        "torch.mul, out given": lambda: torch.mul(x, 1.5, out=out),
        "octet per tensor": lambda: octet.ops.fake_quantize_per_tensor(x, SCALE, ZERO, 0, 255),
        "octet and observe": lambda: octet.ops.observe_and_fake_quantize(x, SCALE, ZERO, 0, 255),
        "ATen per tensor": lambda: torch.fake_quantize_per_tensor_affine(x, SCALE, ZERO, 0, 255),
    }


def weights(w: Tensor) -> dict[str, Call]:
    scale = w.abs().flatten(1).amax(1) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return {
        "torch.mul": lambda: torch.mul(w, 1.5),
        "octet per channel": lambda: octet.ops.fake_quantize_per_channel(w, scale, zero, 0, -127, 127),
        "ATen per channel": lambda: torch.fake_quantize_per_channel_affine(w, scale, zero, 0, -127, 127),
    }


def both_ways(x: Tensor) -> dict[str, Call]:
    x = x.clone().requires_grad_()
    grad = torch.ones_like(x)
    return {
        "torch.mul": lambda: torch.autograd.grad(x * 1.5, x, grad),
        "octet": lambda: torch.autograd.grad(octet.ops.fake_quantize_per_tensor(x, SCALE, ZERO, 0, 255), x, grad),
        "ATen": lambda: torch.autograd.grad(torch.fake_quantize_per_tensor_affine(x, SCALE, ZERO, 0, 255), x, grad),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.randn(16, 64, 56, 56)
    w = torch.randn(512, 512, 3, 3)
    print(f"{environment()}, octet on {octet.cpu.active()}")
    for title, calls in {
        f"Activations {list(x.shape)}, forward": activations(x),
        f"Weights {list(w.shape)}, forward": weights(w),
        f"Activations {list(x.shape)}, forward and backward": both_ways(x),
    }.items():
        print(f"\n{title}\n")
        report(interleave(calls, arguments.rounds), "torch.mul")


if __name__ == "__main__":
    main()
