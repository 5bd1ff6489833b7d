"""C++ programs with what the Python package holds: a project built against it, and the runner of scripted models."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch
from torch import nn

import octet

ROOT = Path(__file__).parents[2]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    source = ROOT / "tests" / "cpp" / "consumer"
    return run("cmake", "-S", source, "-B", build, f"-DOctet_DIR={octet.get_cmake_dir()}", *options)


def test_a_project_builds_against_the_package(tmp_path: Path) -> None:
    configured = configure(tmp_path, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}")
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", tmp_path, "--target", "consumer")
    assert built.returncode == 0, built.stdout + built.stderr
    result = run(tmp_path / "consumer")
    assert result.returncode == 0, result.stderr
    minor = ".".join(torch.__version__.split(".")[:2])
    assert result.stdout.startswith(f"octet {octet.__version__} for torch {minor}")


def test_the_package_refuses_another_torch(tmp_path: Path) -> None:
    other = tmp_path / "torch"
    other.mkdir()
    (other / "TorchConfig.cmake").write_text("set(Torch_FOUND TRUE)\n")
    (other / "TorchConfigVersion.cmake").write_text("set(PACKAGE_VERSION 1.9.0)\n")
    configured = configure(tmp_path / "build", f"-DTorch_DIR={other}")
    assert configured.returncode != 0
    message = " ".join(configured.stderr.split())
    assert f"this octet was built for Torch {'.'.join(torch.__version__.split('.')[:2])} (found 1.9.0" in message


def run_scripted() -> Path:
    found = [path for path in (ROOT / "build").rglob("run_scripted") if path.is_file() and os.access(path, os.X_OK)]
    assert found, "run_scripted is not built: configure with -DOCTET_BUILD_EXAMPLES=ON, as `make test` does"
    return max(found, key=lambda path: path.stat().st_mtime)


def test_scripted_model_has_the_same_bits_in_cpp(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    images, labels = torch.randn(150, 3, 8, 8), torch.randint(5, (150,))
    qat = octet.prepare(model, (images[:2],))
    octet.calibrate(qat, [(images[:64],)])
    int8 = octet.convert(qat)
    octet.export.torchscript(int8, (images[:2],), tmp_path / "model.ts")
    torch.save({"images": images, "labels": labels}, tmp_path / "inputs.pt")
    result = run(run_scripted(), tmp_path / "model.ts", tmp_path / "inputs.pt", tmp_path / "logits.pt")
    assert result.returncode == 0, result.stderr
    expected = int8(images)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    right = int((expected.argmax(1) == labels).sum())
    assert result.stdout.startswith(f"{right} of 150 images right")


def test_run_scripted_says_what_is_wrong(tmp_path: Path) -> None:
    assert "usage:" in run(run_scripted()).stderr
    result = run(run_scripted(), tmp_path / "none.ts", tmp_path / "none.pt", tmp_path / "logits.pt")
    assert result.returncode == 1
    assert "none.ts" in result.stderr
