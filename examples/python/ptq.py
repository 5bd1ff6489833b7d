"""Post-training quantization: an FP32 network to INT8 with a few batches of data and no training."""

import torch

import octet
from data import load
from network import ResNet, accuracy, logits, train


def main(epochs: int = 10) -> tuple[float, float]:
    torch.manual_seed(0)
    training, test = load("digits")
    model = ResNet(8)
    train(model, training, epochs, lr=0.1)

    prepared = octet.prepare(model, (training.images[:2],))
    octet.calibrate(prepared, [(batch,) for batch, _ in training.batches(64)])
    int8 = octet.convert(prepared)

    before, after = accuracy(logits(model, test), test), accuracy(logits(int8, test), test)
    print(f"FP32 {before:.2f} %, INT8 {after:.2f} %")
    return before, after


if __name__ == "__main__":
    main()
