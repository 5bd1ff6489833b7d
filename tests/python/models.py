"""Small networks in the styles people really write, in plain torch. Shared by all tests.

`CASES` maps a name to a factory of (model, example args, example kwargs); every model takes any batch size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act=nn.ReLU) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), act(inplace=True))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = nn.Identity()
        if stride != 1 or cin != cout:
            self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.down(x))  # one ReLU module called twice, as torchvision has it


class ResNet(nn.Module):
    """ResNet-20 in structure, narrower and shallower."""

    def __init__(self, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, width)
        self.layer1 = nn.Sequential(BasicBlock(width, width), BasicBlock(width, width))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.use_skip = stride == 1 and cin == cout
        self.conv = nn.Sequential(
            conv_bn_relu(cin, mid, 1, act=nn.ReLU6),
            conv_bn_relu(mid, mid, 3, stride, groups=mid, act=nn.ReLU6),
            nn.Conv2d(mid, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_skip else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu(3, 8, 3, 2, act=nn.ReLU6), InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))


class DenseNet(nn.Module):
    """Each layer reads the concatenation of all before it; batch norm comes first."""

    def __init__(self, layers: int = 3, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + i * growth) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(8 + i * growth, growth, 3, padding=1) for i in range(layers))
        self.transition = nn.AvgPool2d(2)
        self.fc = nn.Linear(8 + layers * growth, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(self.transition(x).mean((2, 3)))


class ConcatIntoAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.skip = conv_bn_relu(3, 4), conv_bn_relu(3, 6, 1), conv_bn_relu(3, 10, 5)
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1) + self.skip(x))


class DenseSkips(nn.Module):
    """One tensor feeds several additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.blocks = nn.ModuleList(conv_bn_relu(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, second, third = (block(x) for block in self.blocks)
        return (x + first) + (x + second) + (third + x)


class FunctionalStyle(nn.Module):
    """Own parameters, functional ops, in-place writes, dropout by flag."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight, stride=2, padding=1)) * self.scale
        y = self.conv(x)
        y += x
        y.relu_()
        y = F.dropout(y, 0.25, self.training)
        y = torch.cat((F.adaptive_avg_pool2d(y, 1), F.max_pool2d(y, y.shape[-2:])), 1)
        return self.fc(y.view(y.size(0), -1))


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.bn(self.conv(F.relu(self.conv(x)))))


class FloatIsland(nn.Module):
    """Layer norm and softmax between convolution and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.LayerNorm(8)
        self.mid, self.fc = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        weights = torch.softmax(self.mid(tokens), dim=1)
        return self.fc((weights * tokens).sum(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_bn_relu(3, 8, act=nn.SiLU)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class AudioNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, 9, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 12, 3), nn.Hardswish()
        )
        self.up = nn.ConvTranspose1d(12, 4, 4, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, wave: Tensor) -> Tensor:
        return self.fc(self.up(self.net(wave)).mean(-1))


class Transformer(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, dim)
        self.position = nn.Parameter(torch.randn(1, 6, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, 2, dim // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q @ k.transpose(-2, -1)) * (dim // 2) ** -0.5).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class Idioms(nn.Module):
    """Channel shuffle, chunk, pad, interpolate, slicing, squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn_relu(3, 8), conv_bn_relu(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, dim=1)
        x = torch.cat([a, self.conv2(b)], 1)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, 2, channels // 2, height, width).permute(0, 2, 1, 3, 4).reshape(batch, -1, height, width)
        x = F.pad(x, (1, 0, 1, 0))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.interpolate(x, size=(5, 5), mode="bilinear", align_corners=False)
        return F.avg_pool2d(x[:, 1:, :-1], 4).squeeze(-1).squeeze(-1)


class WritesThroughViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        y = self.conv(x)
        y[:, 0] = 0.5
        y[:, 1:2] += y[:, 3:4]
        left = y.transpose(1, 2)[:, :3]
        left.mul_(2)
        y.view(y.size(0), -1).relu_()
        return y.flatten(1).sum(1, keepdim=True) + left.mean()


class AuxHead(nn.Module):
    """The auxiliary head works only when asked for."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.deep = deep
        self.features = conv_bn_relu(3, 6)
        self.aux = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU())
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.aux(x) if self.deep else self.head(x).mean((2, 3))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv_bn_relu(3, 6), nn.Linear(5, 6)

    def forward(self, image: Tensor, *, vector: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        y = self.image(image).mean((2, 3)) + self.vector(vector) * scale
        return y if mask is None else y * mask


class ManyOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv_bn_relu(3, 6)
        self.cls, self.box = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.body(x)
        return {"cls": self.cls(y), "rest": (self.box(y), [y, x])}


def _image(batch: int, size: tuple[int, int] = (13, 11)) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, *size),)


Inputs = Callable[[int], tuple[tuple, dict]]
CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    model.__name__: (model, lambda batch: (_image(batch), {}))
    for model in (
        ResNet, MobileNetV2, DenseNet, ConcatIntoAdd, DenseSkips, FunctionalStyle, SharedConv, FloatIsland,
        SqueezeExcite, Idioms, WritesThroughViews, AuxHead, ManyOutputs,
    )
} | {
    "AudioNet": (AudioNet, lambda batch: ((torch.randn(batch, 1, 101),), {})),
    "Transformer": (Transformer, lambda batch: ((torch.randint(0, 11, (batch, 6)),), {})),
    "TwoInputs": (TwoInputs, lambda batch: (_image(batch), {"vector": torch.randn(batch, 5), "scale": 0.5})),
}  # fmt: skip


def build(name: str, seed: int = 0) -> tuple[nn.Module, Inputs]:
    """The model of that name in training mode, its batch norms away from their neutral start, and its input maker."""
    factory, inputs = CASES[name]
    torch.manual_seed(seed)
    model = factory()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)  # negative gammas too
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, inputs
