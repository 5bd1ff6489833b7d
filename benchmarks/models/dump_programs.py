"""Writes the networks' programs to files that `network_profile` reads.

    python benchmarks/models/dump_programs.py FOLDER
    network_profile FOLDER/resnet20.program 1,3,32,32

A file holds the four arrays of the program (octet/kernels/network.h), each behind its count of elements (int64).
"""

import sys
from pathlib import Path

import networks
import torch

import octet


def program(name: str) -> octet.network.Network:
    qat = octet.prepare(networks.make(name), (networks.example(name, 2),))
    octet.calibrate(qat, [networks.example(name, 1)])
    model = octet.convert(qat).lowered()
    (network,) = [m for m in model.modules() if isinstance(m, octet.network.Network)]
    return network


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name in networks.CLASSES:
    with (folder / f"{name}.program").open("wb") as file:
        for array in program(name).buffers():
            file.write(torch.tensor(array.numel()).numpy().tobytes() + array.numpy().tobytes())
