"""The three networks of the training benchmarks, as most repositories write them."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, 3, relu=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_bn(inputs, hidden, 1)] if expansion > 1 else []
        depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*expand, depthwise, conv_bn(hidden, outputs, 1, relu=False))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def stack(block: type[nn.Module], inputs: int, stages: list[tuple[int, int, int]], *extra: int) -> list[nn.Module]:
    """Blocks of stages (outputs, count, stride of the first)."""
    blocks = []
    for outputs, count, stride in stages:
        for i in range(count):
            blocks.append(block(inputs, outputs, stride if i == 0 else 1, *extra))
            inputs = outputs
    return blocks


def head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet18() -> nn.Sequential:
    blocks = stack(BasicBlock, 64, [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)])
    return nn.Sequential(conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, *head(512, 1000))


def resnet20() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 16, 3), *stack(BasicBlock, 16, [(16, 3, 1), (32, 3, 2), (64, 3, 2)]), *head(64, 10))


def mobilenetv2() -> nn.Sequential:
    stages = [(24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]
    blocks = [InvertedResidual(32, 16, 1, 1), *stack(InvertedResidual, 16, stages, 6)]
    return nn.Sequential(conv_bn(3, 32, 3, 2), *blocks, conv_bn(320, 1280, 1), *head(1280, 1000))


# name: (network, batch, image size, classes)
NETWORKS = {
    "resnet18": (resnet18, 16, 112, 1000),
    "resnet20": (resnet20, 128, 32, 10),
    "mobilenetv2": (mobilenetv2, 16, 112, 1000),
}
