"""The whole road: train a residual network in FP32, quantize it after training, fine-tune it with QAT, convert it to
INT8, check that both give the same bits, script it, and run it from a C++ program. The same with weights of 2 bits
shows what fine-tuning is for. Prints a table and leaves it, a picture and the files in demo-output/.

    python examples/python/demo.py [--data digits|fashion-mnist] [--seed 0] [--output demo-output/digits]
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import octet
from data import Split, load
from network import ResNet, accuracy, logits, train
from picture import draw

ROOT = Path(__file__).parents[2]
# Epochs in FP32, epochs of fine-tuning, images for calibration.
EPOCHS = {"digits": (25, 6, 512), "fashion-mnist": (3, 1, 1024)}
# Weights of 2 bits, but for the first layer and the last, as is the custom.
TWO_BITS = octet.Recipe(weights=octet.Spec(bits=2), overrides={"stem": octet.Spec(bits=8), "fc": octet.Spec(bits=8)})


@dataclass
class Row:
    """A line of the table: percent, bytes, milliseconds per image."""

    name: str
    accuracy: float
    size: int
    milliseconds: float


def milliseconds_per_image(model: nn.Module, images: Tensor, repeats: int = 5) -> float:
    """The fastest of some runs over a batch."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - start)
    return 1000 * min(times) / len(images)


def measure(name: str, model: nn.Module, path: Path, test: Split) -> Row:
    return Row(
        name, accuracy(logits(model, test), test), path.stat().st_size, milliseconds_per_image(model, test.images[:64])
    )


def post_training(model: nn.Module, data: Split, images: int, recipe: octet.Recipe | None = None) -> nn.Module:
    """Ranges from a few batches, no training."""
    ptq = octet.prepare(model, (data.images[:2],), recipe)
    octet.calibrate(ptq, [(batch,) for batch in data.images[:images].split(64)])
    return ptq


def fine_tune(
    model: nn.Module, data: Split, epochs: int, seed: int, recipe: octet.Recipe | None = None, label: str = "QAT"
) -> nn.Module:
    """The same loop as before, on the prepared model, at a tenth of the learning rate."""
    qat = octet.prepare(model, (data.images[:2],), recipe)
    schedule = octet.Schedule(qat, epochs * (len(data) // 64))
    train(qat, data, epochs, lr=0.01, seed=seed, after_step=schedule.step, label=label)
    return qat


def two_bits(
    fp32: nn.Module, training: Split, test: Split, epochs: int, images: int, seed: int, output: Path
) -> list[Row]:
    """The INT8 models of PTQ and QAT whose weights are -1, 0 or 1 times a scale."""
    ptq = post_training(fp32, training, images, TWO_BITS)
    qat = fine_tune(copy.deepcopy(fp32), training, epochs, seed, TWO_BITS, "QAT, 2 bits")
    rows = []
    for name, model in {"PTQ w2": ptq, "QAT w2": qat}.items():
        path = output / f"{name.lower().replace(' ', '-')}.octet"
        int8 = octet.convert(model)
        octet.save(int8, path)
        rows.append(measure(name, int8, path, test))
    return rows


def find_program(name: str) -> Path:
    """The C++ example, in whichever build folder it was built last."""
    found = [path for path in (ROOT / "build").rglob(name) if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        raise SystemExit(f"{name} is not built: run `make demo`, or build with -DOCTET_BUILD_EXAMPLES=ON")
    return max(found, key=lambda path: path.stat().st_mtime)


def run_in_cpp(script: Path, test: Split, output: Path) -> Tensor:
    """The logits of the C++ example for the test split."""
    inputs, results = output / "test-inputs.pt", output / "cpp-logits.pt"
    torch.save({"images": test.images, "labels": test.labels}, inputs)
    subprocess.run([find_program("run_scripted"), script, inputs, results], check=True)
    return torch.load(results)


def table(rows: list[Row]) -> str:
    lines = [f"{'':8}{'accuracy':>10}{'file':>12}{'per image':>13}"]
    lines += [f"{r.name:8}{r.accuracy:>8.2f} %{r.size / 1000:>9.1f} kB{r.milliseconds:>10.4f} ms" for r in rows]
    return "\n".join(lines)


def demo(data: str, seed: int, output: Path) -> list[Row]:
    """Runs everything; returns the rows FP32, PTQ, QAT, INT8, and PTQ and QAT with weights of 2 bits."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    training, test = load(data)
    epochs, tuning_epochs, calibration_images = EPOCHS[data]

    fp32 = ResNet()
    train(fp32, training, epochs, lr=0.1, seed=seed, label="FP32")
    torch.save(fp32.state_dict(), output / "fp32.pt")

    ptq = post_training(fp32, training, calibration_images)
    ptq_int8 = octet.convert(ptq)
    octet.save(ptq_int8, output / "ptq.octet")

    qat = fine_tune(copy.deepcopy(fp32), training, tuning_epochs, seed)
    octet.save(qat, output / "qat.octet")
    int8 = octet.convert(qat)
    octet.save(int8, output / "int8.octet")
    report = str(octet.report(int8))
    print(report)
    (output / "report.txt").write_text(report + "\n")

    print(octet.verify(qat, int8, (test.images[:64],)))
    expected = logits(int8, test)
    assert torch.equal(logits(qat, test), expected), "QAT in eval mode and INT8 must agree in every bit"
    script = output / "int8.ts"
    octet.export.torchscript(int8, (test.images[:2],), script)
    assert torch.equal(run_in_cpp(script, test, output), expected), "C++ and Python must agree in every bit"
    print(f"QAT, INT8 and C++ agree in all {expected.numel()} logits of the test split, bit for bit")

    rows = [
        measure("FP32", fp32, output / "fp32.pt", test),
        measure("PTQ", ptq_int8, output / "ptq.octet", test),
        measure("QAT", qat, output / "qat.octet", test),
        measure("INT8", int8, output / "int8.octet", test),
    ]
    rows += two_bits(fp32, training, test, tuning_epochs, calibration_images, seed, output)
    text = table(rows)
    print(text)
    (output / "table.txt").write_text(text + "\n")
    draw(output / "picture.png", data, rows, {"PTQ": ptq, "QAT": qat}, test.images[:256])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="FP32, PTQ, QAT, INT8 and C++ on one small network")
    parser.add_argument("--data", choices=EPOCHS, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or Path("demo-output") / arguments.data
    start = time.perf_counter()
    demo(arguments.data, arguments.seed, output)
    print(f"{time.perf_counter() - start:.0f} s; table, report, picture and files are in {output}/")


if __name__ == "__main__":
    main()
