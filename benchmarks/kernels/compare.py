"""Convolution stacks of known networks: octet::int8_conv against onednn::qconv_pointwise and FP32, interleaved.

Every layer of a network runs on its own, one peer after the other, round by round; a stack's time is the sum over its
layers of the shortest (and of the median) call. Peers get what they like best: channels_last activations, prepacked
weights.

Usage: python benchmarks/kernels/compare.py [--rounds 30] [--batch 1 16] [--threads 1 2] [--networks resnet20 ...]
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import octet
from octet import cpu


@dataclass
class Layer:
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    count: int = 1


def resnet18() -> list[Layer]:
    layers = [Layer(3, 64, 224, 7, 2), Layer(64, 64, 56, count=4)]
    for inputs, size in ((64, 56), (128, 28), (256, 14)):
        outputs = 2 * inputs
        layers += [Layer(inputs, outputs, size, 3, 2), Layer(outputs, outputs, size // 2, count=3)]
        layers += [Layer(inputs, outputs, size, 1, 2)]
    return layers


def mobilenet_v2() -> list[Layer]:
    layers = [Layer(3, 32, 224, 3, 2), Layer(32, 32, 112, groups=32), Layer(32, 16, 112, 1)]
    inputs, size = 16, 112
    for expand, outputs, count, stride in (
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for step in (stride, *[1] * (count - 1)):
            hidden = inputs * expand
            layers += [Layer(inputs, hidden, size, 1), Layer(hidden, hidden, size, 3, step, hidden)]
            size //= step
            layers += [Layer(hidden, outputs, size, 1)]
            inputs = outputs
    return [*layers, Layer(320, 1280, 7, 1)]


def resnet20() -> list[Layer]:
    layers = [Layer(3, 16, 32), Layer(16, 16, 32, count=6)]
    for inputs, size in ((16, 32), (32, 16)):
        layers += [Layer(inputs, 2 * inputs, size, 3, 2), Layer(2 * inputs, 2 * inputs, size // 2, count=5)]
    return layers


NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "resnet20": resnet20}


def peers(layer: Layer, batch: int) -> dict[str, Callable[[], torch.Tensor]]:
    """The same convolution for every peer, as a call without arguments."""
    shape = (batch, layer.inputs, layer.size, layer.size)
    x = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    w = torch.randint(
        -127, 128, (layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel), dtype=torch.int8
    )
    where = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1], layer.groups
    bias, multiplier = torch.zeros(layer.outputs, dtype=torch.int32), torch.full((layer.outputs,), 0.001)

    scales, zeros = torch.full((layer.outputs,), 0.001), torch.zeros(layer.outputs, dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(w, scales, 1.0, 7, *where, list(shape))
    xf, wf = (t.float().contiguous(memory_format=torch.channels_last) for t in (x, w))

    def run_onednn() -> torch.Tensor:
        return torch.ops.onednn.qconv_pointwise(
            x, 1.0, 7, packed, scales, zeros, None, *where, 1.0, 10, torch.uint8, "none", [], ""
        )

    return {
        "octet": lambda: torch.ops.octet.int8_conv(x, w, bias, multiplier, *where, 7, 10, 0, 255),
        "onednn": run_onednn,
        "fp32": lambda: torch.nn.functional.conv2d(xf, wf, None, *where),
    }


def measure(layer: Layer, batch: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each round, by peer."""
    calls = peers(layer, batch)
    with torch.inference_mode():
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) * layer.count for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--layers", action="store_true", help="also print every layer")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, octet on {cpu.active()}")
    print(f"{'us, min (median)':38} {'octet':>20} {'onednn':>20} {'fp32':>20} {'onednn/octet':>13} {'fp32/octet':>11}")
    for network in options.networks:
        for batch in options.batch:
            for threads in options.threads:
                torch.set_num_threads(threads)
                results = []
                for layer in NETWORKS[network]():
                    results.append(measure(layer, batch, options.rounds))
                    if options.layers:
                        print_row(str(layer).removeprefix("Layer"), [results[-1]])
                print_row(f"{network} batch {batch}, {threads} thread(s)", results)


def print_row(name: str, results: list[dict[str, np.ndarray]]) -> None:
    low = {peer: 1e6 * sum(times[peer].min() for times in results) for peer in results[0]}
    middle = {peer: 1e6 * sum(np.median(times[peer]) for times in results) for peer in results[0]}
    cells = " ".join(f"{f'{low[peer]:.0f} ({middle[peer]:.0f})':>20}" for peer in low)
    print(f"{name:38} {cells} {low['onednn'] / low['octet']:13.2f} {low['fp32'] / low['octet']:11.2f}", flush=True)


if __name__ == "__main__":
    assert octet  # registers the operators
    main()
