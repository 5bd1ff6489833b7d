"""Four networks with random weights: speed does not depend on them. All take and give float32."""

import math

import torch
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, ci, co, s):
        super().__init__()
        self.conv1 = nn.Conv2d(ci, co, 3, s, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(co)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(co, co, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(co)
        self.relu2 = nn.ReLU()
        self.down = (
            nn.Sequential(nn.Conv2d(ci, co, 1, s, bias=False), nn.BatchNorm2d(co))
            if s != 1 or ci != co
            else nn.Identity()
        )

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.down(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, ci = [], 64
        for co, s in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(ci, co, s), BasicBlock(co, co, 1)]
            ci = co
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks, ci = [], 16
        for co, s in ((16, 1), (32, 2), (64, 2)):
            blocks += [BasicBlock(ci, co, s), BasicBlock(co, co, 1), BasicBlock(co, co, 1)]
            ci = co
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


def cbr(ci, co, k, s, g=1, act=True):
    layers = [nn.Conv2d(ci, co, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(co)]
    return layers + ([nn.ReLU6()] if act else [])


class InvertedResidual(nn.Module):
    def __init__(self, ci, co, s, t):
        super().__init__()
        h = ci * t
        layers = cbr(ci, h, 1, 1) if t != 1 else []
        self.conv = nn.Sequential(*layers, *cbr(h, h, 3, s, h), *cbr(h, co, 1, 1, act=False))
        self.res = s == 1 and ci == co

    def forward(self, x):
        y = self.conv(x)
        return x + y if self.res else y


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        f, ci = cbr(3, 32, 3, 2), 32
        for t, c, n, s in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(n):
                f.append(InvertedResidual(ci, c, s if i == 0 else 1, t))
                ci = c
        f += cbr(ci, 1280, 1, 1)
        self.features = nn.Sequential(*f)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class FFN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.r, self.b = nn.Linear(384, 1536), nn.ReLU(), nn.Linear(1536, 384)

    def forward(self, x):
        return self.b(self.r(self.a(x)))


SHAPES = {"resnet18": (3, 224, 224), "mobilenetv2": (3, 224, 224), "resnet20": (3, 32, 32), "ffn": (384,)}
CLASSES = {"resnet18": ResNet18, "mobilenetv2": MobileNetV2, "resnet20": ResNet20, "ffn": FFN}
TOKENS = 64  # ffn: rows per batch element


def make(name):
    torch.manual_seed(0)
    m = CLASSES[name]()
    for mod in m.modules():  # running statistics that are not the trivial 0 and 1
        if isinstance(mod, nn.BatchNorm2d):
            mod.running_mean.normal_(0, 0.1)
            mod.running_var.uniform_(0.5, 1.5)
    return m.eval()


def example(name, batch):
    g = torch.Generator().manual_seed(1)
    n = batch * TOKENS if name == "ffn" else batch
    return torch.randn(n, *SHAPES[name], generator=g)


def taps_inside(size, out, kernel, stride, padding, dilation):
    """How many taps of all outputs along an axis lie inside of the image."""
    return sum(0 <= o * stride - padding + k * dilation < size for o in range(out) for k in range(kernel))


def operations(name, batch):
    """Multiplications and additions of all convolutions and linear layers; those with padding do not count."""
    counts = []

    def count(module, inputs, output):
        if isinstance(module, nn.Linear):
            counts.append(output.numel() * module.in_features)
            return
        m, sizes = module, zip(inputs[0].shape[2:], output.shape[2:], strict=True)
        axes = zip(sizes, m.kernel_size, m.stride, m.padding, m.dilation, strict=True)
        taps = math.prod(taps_inside(*in_out, *rest) for in_out, *rest in axes)
        counts.append(len(output) * taps * m.in_channels // m.groups * m.out_channels)

    model = make(name)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(example(name, 1))
    return 2 * batch * sum(counts)
