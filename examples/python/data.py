"""The data of the examples: digits of scikit-learn, Fashion-MNIST of Debian's package dataset-fashion-mnist."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Split:
    """Images float32 [N, 1, H, W] in [0, 1], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None):
        """Pairs of images and labels; shuffled, and whole batches only, when a generator is given."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for chosen in order.split(size):
            if generator is None or len(chosen) == size:
                yield self.images[chosen], self.labels[chosen]


def load(name: str) -> tuple[Split, Split]:
    """Training and test split of "digits" or "fashion-mnist"; always the same ones."""
    return {"digits": digits, "fashion-mnist": fashion_mnist}[name]()


def digits() -> tuple[Split, Split]:
    """1797 images of 8 x 8; every third one, 599 in all, is held back for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    held_back = torch.arange(len(labels)) % 3 == 0
    return Split(images[~held_back], labels[~held_back]), Split(images[held_back], labels[held_back])


def fashion_mnist() -> tuple[Split, Split]:
    """60,000 training and 10,000 test images of 28 x 28."""
    if not FASHION_MNIST.is_dir():
        raise SystemExit(f"no data under {FASHION_MNIST}: on Debian, apt-get install dataset-fashion-mnist")
    return _read_idx("train"), _read_idx("t10k")


def _read_idx(prefix: str) -> Split:
    with gzip.open(FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return Split(torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(labels.astype(np.int64)))
