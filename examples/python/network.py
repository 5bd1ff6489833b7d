"""A residual network in plain PyTorch, and an ordinary training loop: neither knows anything about octet."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data import Split


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip, as in ResNet."""

    def __init__(self, cin: int, cout: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.skip = nn.Identity()
        if stride != 1 or cin != cout:
            self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """Images [N, 1, H, W] to 10 logits."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = BasicBlock(width, width)
        self.layer2 = BasicBlock(width, 2 * width, 2)
        self.layer3 = BasicBlock(2 * width, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def train(
    model: nn.Module,
    data: Split,
    epochs: int,
    lr: float,
    seed: int = 0,
    after_step: Callable[[], None] = lambda: None,
    label: str = "train",
    batch: int = 64,
    progress: bool = True,
) -> None:
    """SGD with momentum and a one-cycle learning rate; `after_step` is called after every step."""
    steps = epochs * (len(data) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with tqdm(total=steps, desc=f"{label:>10}", unit="step", disable=not progress) as bar:
        for _ in range(epochs):
            for images, labels in data.batches(batch, generator):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                after_step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
    model.eval()


@torch.no_grad()
def logits(model: nn.Module, data: Split, batch: int = 64) -> Tensor:
    """The model's outputs on all of `data`, in order."""
    return torch.cat([model(images) for images, _ in data.batches(batch)])


def accuracy(outputs: Tensor, data: Split) -> float:
    """Percent of images whose largest logit is the label's."""
    return 100 * (outputs.argmax(1) == data.labels).double().mean().item()
