"""Quantization-aware training on several processes: each takes a part of the data, ranges and batch norm see it all.

    torchrun --nproc_per_node=2 examples/python/train_ddp.py [--output int8.octet]

Torch's own DistributedDataParallel does the work; the one line octet adds is `set_mode(qat, sync_bn=True)`, for batch
norm over the batches of all processes. The ranges are shared without being asked.
"""

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import octet
from data import Split, load
from network import ResNet, accuracy, logits, train


def part(data: Split, rank: int, count: int) -> Split:
    """Every `count`-th image, as many for each process."""
    whole = len(data) // count * count
    return Split(data.images[rank:whole:count], data.labels[rank:whole:count])


def main(output: str | None = None, epochs: int = 25, tuning_epochs: int = 6, batch: int = 64) -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    training, test = load("digits")
    mine = part(training, rank, count)
    options = {"batch": batch // count, "progress": rank == 0}

    model = ResNet()
    train(DistributedDataParallel(model), mine, epochs, lr=0.1, label="FP32", **options)

    qat = octet.prepare(model, (training.images[:2],))
    octet.set_mode(qat, sync_bn=True)
    schedule = octet.Schedule(qat, tuning_epochs * (len(mine) // options["batch"]))
    train(DistributedDataParallel(qat), mine, tuning_epochs, lr=0.01, after_step=schedule.step, label="QAT", **options)

    int8 = octet.convert(qat)  # the same on every process
    if rank == 0:
        print(octet.verify(qat, int8, (test.images,)))
        before, after = accuracy(logits(model, test), test), accuracy(logits(int8, test), test)
        print(f"{count} processes: FP32 {before:.2f} %, INT8 {after:.2f} %")
        if output:
            octet.save(int8, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="QAT under torchrun")
    parser.add_argument("--output", help="where to save the INT8 model")
    main(parser.parse_args().output)
