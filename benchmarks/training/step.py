"""A training step (forward, loss, backward, SGD with momentum) and the bytes kept for backward: FP32, octet, torch.ao.

python benchmarks/training/step.py --network resnet18 --threads 1 --rounds 9
"""

from __future__ import annotations

import argparse
import warnings

import torch
from measure import environment, interleave, report, saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

import octet.cpu
from models import NETWORKS


def torch_ao(model: nn.Module, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its end
        return prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (x,))


VARIANTS = {
    "fp32": lambda model, x: model,
    "octet": lambda model, x: octet.prepare(model, (x,)),
    "octet_low_memory": lambda model, x: octet.prepare(model, (x,), low_memory=True),
    "torch_ao": torch_ao,
}


class Step:
    """One training step of one variant; `bytes` is what its forward keeps."""

    def __init__(self, variant: str, network: str, layout: torch.memory_format, autocast: bool = False) -> None:
        self.autocast = autocast
        build, batch, size, classes = NETWORKS[network]
        torch.manual_seed(0)
        self.x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
        self.y = torch.randint(classes, (batch,))
        model = build().to(memory_format=layout).train()
        self.model = VARIANTS[variant](model, self.x).train().to(memory_format=layout)
        with torch.no_grad():
            self.model(self.x)  # the first forward only observes
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        known = [*self.model.parameters(), *self.model.buffers(), self.x, self.y]
        self.bytes = saved_bytes(self.loss, known)

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return F.cross_entropy(self.model(self.x), self.y)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--contiguous", action="store_true", help="contiguous instead of channels_last")
    parser.add_argument("--autocast", action="store_true", help="forward and loss under bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layout = torch.contiguous_format if arguments.contiguous else torch.channels_last
    steps = {name: Step(name, arguments.network, layout, arguments.autocast) for name in arguments.variants.split(",")}
    types = "bfloat16 autocast" if arguments.autocast else "float32"
    print(f"{arguments.network}, {str(layout)[6:]}, {types}; {environment()}, octet on {octet.cpu.active()}\n")
    report(interleave(steps, arguments.rounds), next(iter(steps)))
    reference = next(iter(steps.values())).bytes
    print(
        "\nkept for backward: "
        + ", ".join(f"{n} {s.bytes / 2**20:.1f} MiB ({s.bytes / reference:.2f} x)" for n, s in steps.items())
    )


if __name__ == "__main__":
    main()
