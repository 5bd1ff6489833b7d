"""Quantization-aware training with 2-bit weights, where calibration alone is not enough; saved and loaded again."""

import tempfile
from pathlib import Path

import torch

import octet
from data import load
from network import ResNet, accuracy, logits, train


def main(epochs: int = 10, tuning_epochs: int = 6) -> tuple[float, float]:
    torch.manual_seed(0)
    training, test = load("digits")
    model = ResNet(8)
    train(model, training, epochs, lr=0.1)

    recipe = octet.Recipe(weights=octet.Spec(bits=2), overrides={"stem": octet.Spec(bits=8), "fc": octet.Spec(bits=8)})
    qat = octet.prepare(model, (training.images[:2],), recipe)
    schedule = octet.Schedule(qat, tuning_epochs * (len(training) // 64))
    train(qat, training, tuning_epochs, lr=0.02, after_step=schedule.step, label="QAT")

    int8 = octet.convert(qat)
    print(octet.verify(qat, int8, (test.images,)))
    with tempfile.TemporaryDirectory() as folder:
        octet.save(int8, Path(folder) / "model.octet")
        int8 = octet.load(Path(folder) / "model.octet")

    before, after = accuracy(logits(model, test), test), accuracy(logits(int8, test), test)
    print(f"FP32 {before:.2f} %, INT8 with 2-bit weights {after:.2f} %")
    return before, after


if __name__ == "__main__":
    main()
