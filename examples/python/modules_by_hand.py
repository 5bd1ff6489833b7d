"""A network composed of octet.nn modules: no capture, every grid in sight.

Each module quantizes its output and reads its producer's grid.
"""

import torch
from torch import Tensor, nn

from data import load
from network import accuracy, logits, train
from octet.nn import AdaptiveAvgPool2d, Add, ConvBn2d, ConvBnReLU2d, FakeQuantize, Linear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantize = FakeQuantize()
        self.stem = ConvBnReLU2d(1, 16, 3, padding=1, bias=False, input=self.quantize)
        self.conv = ConvBn2d(16, 16, 3, padding=1, bias=False, input=self.stem.output)
        self.add = Add(self.conv.output, self.stem.output)
        self.down = ConvBnReLU2d(16, 32, 3, 2, 1, bias=False, input=self.add.output)
        self.pool = AdaptiveAvgPool2d(1, input=self.down.output)
        self.fc = Linear(32, 10, input=self.pool.output)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quantize(x))
        x = self.add(self.conv(x), x)
        return self.fc(self.pool(self.down(x)).flatten(1))


def main(epochs: int = 12) -> float:
    torch.manual_seed(0)
    training, test = load("digits")
    model = Net()
    train(model, training, epochs, lr=0.1)
    reached = accuracy(logits(model, test), test)
    print(f"trained with quantization from the first step on: {reached:.2f} %")
    return reached


if __name__ == "__main__":
    main()
