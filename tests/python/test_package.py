"""The package as a stranger gets it: one version, a complete wheel, usable in a clean environment."""

import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import octet

ROOT = Path(__file__).parents[2]
OPTIONAL = ("onnx", "onnxruntime", "matplotlib", "sklearn", "scipy", "pytest", "hypothesis", "pandas")


def run(*command, **kwargs) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in the build folder that is already there, with the options it already has."""
    cache = ROOT / "build" / "python" / "CMakeCache.txt"
    options = re.findall(r"^(OCTET_\w+):(?:BOOL|STRING)=(\S+)$", cache.read_text(), re.M) if cache.exists() else []
    environment = {**os.environ, "CMAKE_ARGS": " ".join(f"-D{name}={value}" for name, value in options)}
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    run(*pip, env=environment)
    return next(folder.glob("torch_octet-*.whl"))


@pytest.fixture(scope="module")
def stranger(wheel, tmp_path_factory) -> Path:
    """The interpreter of a clean environment that holds the wheel and sees the torch of this one."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    seen = {str(Path(torch.__file__).parents[1]), *site.getsitepackages()}
    (packages / "seen.pth").write_text("\n".join(sorted(seen)))
    return python


def test_one_version():
    version = (ROOT / "version.txt").read_text().strip()
    assert octet.__version__ == version
    header = Path(octet.get_include()) / "octet" / "version.h"
    assert f'"{version}"' in header.read_text()


def test_wheel_holds_library_headers_and_cmake_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in (
        r"octet/lib/liboctet\.so",
        r"octet/_C\..*\.so",
        r"octet/include/octet/octet\.h",
        r"octet/include/octet/core/grid\.h",
        r"octet/.*/OctetConfig\.cmake",
        r"octet/.*/OctetConfigVersion\.cmake",
    ):
        assert any(re.fullmatch(wanted, name) for name in names), f"{wanted} is not in the wheel: {names}"
    roots = {name.split("/")[0] for name in names}
    assert all(root == "octet" or root.endswith(".dist-info") for root in roots), roots


def test_library_does_not_need_python():
    library = Path(octet.__file__).parent / "lib" / "liboctet.so"
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    assert needed, "liboctet.so lists no libraries at all"
    assert not [name for name in needed if "python" in name], needed


def test_wheel_works_in_a_clean_environment_without_optional_packages(stranger, tmp_path):
    program = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import torch, octet
assert octet.__file__.startswith({str(stranger.parents[1])!r}), octet.__file__
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
qat = octet.prepare(model, (x,))
octet.calibrate(qat, [(x,)])
int8 = octet.convert(qat)
assert torch.equal(qat.eval()(x), int8(x))
print("equal", octet.__version__)
"""
    out = run(stranger, "-c", program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert out.split() == ["equal", octet.__version__]


def test_a_cpp_program_links_against_the_wheel(stranger, tmp_path):
    """As docs/cpp.md says; this environment has its torch elsewhere, so that is named too."""
    cmake_dir = run(stranger, "-c", "import octet; print(octet.get_cmake_dir())", cwd=tmp_path).strip()
    assert cmake_dir.startswith(str(stranger.parents[1])), cmake_dir
    source, build = ROOT / "tests" / "cpp" / "consumer", tmp_path / "build"
    run(
        "cmake",
        "-S",
        source,
        "-B",
        build,
        f"-DOctet_DIR={cmake_dir}",
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
    )
    run("cmake", "--build", build)
    out = run("ctest", "--test-dir", build, "--verbose")
    assert f"octet {octet.__version__} for torch" in out and "100% tests passed" in out, out
