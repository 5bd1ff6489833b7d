"""The demo keeps its promises, and the short examples run."""

import importlib
import time

import pytest
import torch

import data
import demo


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The demo on digits for three seeds: (table rows by name, output folder)."""
    results = []
    for seed in range(3):
        output = tmp_path_factory.mktemp(f"demo{seed}")
        results.append(({row.name: row for row in demo.demo("digits", seed, output)}, output))
    return results


def mean_accuracy(runs, name: str) -> float:
    return sum(rows[name].accuracy for rows, _ in runs) / len(runs)


def test_digits_are_split_599_of_1797():
    training, test = data.load("digits")
    assert (len(training), len(test)) == (1198, 599)


def test_int8_is_within_half_a_point_of_fp32(runs):
    assert mean_accuracy(runs, "INT8") >= 97
    assert mean_accuracy(runs, "INT8") >= mean_accuracy(runs, "FP32") - 0.5


def test_int8_has_the_accuracy_of_qat(runs):
    """The demo itself stops if one bit of QAT, INT8 and C++ differs."""
    for rows, _ in runs:
        assert rows["INT8"].accuracy == rows["QAT"].accuracy


def test_fine_tuning_rescues_weights_of_2_bits(runs):
    assert mean_accuracy(runs, "QAT w2") > mean_accuracy(runs, "PTQ w2")
    assert mean_accuracy(runs, "QAT w2") >= 97


def test_int8_file_is_a_fraction_of_fp32(runs):
    for rows, _ in runs:
        assert rows["INT8"].size < 0.5 * rows["FP32"].size


def test_everything_is_on_disk(runs):
    for rows, output in runs:
        text = (output / "table.txt").read_text()
        assert all(f"{row.accuracy:.2f} %" in text for row in rows.values())
        assert (output / "picture.png").read_bytes().startswith(b"\x89PNG")
        assert "conv" in (output / "report.txt").read_text()
        logits = torch.load(output / "cpp-logits.pt")
        assert logits.shape == (599, 10)


@pytest.mark.parametrize("name, floor", [("ptq", 95), ("qat", 95), ("modules_by_hand", 95)])
def test_example_runs(name, floor, capsys):
    result = importlib.import_module(name).main()
    assert (result if isinstance(result, float) else min(result)) >= floor
    assert "%" in capsys.readouterr().out


@pytest.mark.slow
def test_fashion_mnist_is_within_three_tenths(tmp_path):
    if not data.FASHION_MNIST.is_dir():
        pytest.skip(f"needs Debian's package dataset-fashion-mnist (nothing in {data.FASHION_MNIST})")
    start = time.perf_counter()
    rows = {row.name: row for row in demo.demo("fashion-mnist", 0, tmp_path)}
    assert rows["INT8"].accuracy >= rows["FP32"].accuracy - 0.3
    assert rows["FP32"].accuracy > 88, f"after {time.perf_counter() - start:.0f} s"
