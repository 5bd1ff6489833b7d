#!/usr/bin/env bash
# Makes .venv with everything that building and testing need. Usage: tools/bootstrap.sh [PYTHON]
# PYTHON names an interpreter that has a usable torch (2.11 to 2.13); without it the pinned CPU build is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
torch_pin=2.13.0

# The first interpreter that is new enough.
find_python() {
  for candidate in ${1:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$candidate"; return; fi
  done
  echo "octet needs Python 3.11 or newer (looked at: ${1:-python3 python3.13 python3.12 python3.11})" >&2
  exit 1
}

# The system packages, by their Debian names, that this machine lacks.
missing_packages() {
  command -v "${CXX:-g++}" >/dev/null || echo g++
  "$python" -c 'import ensurepip' 2>/dev/null || echo python3-venv
  "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || echo python3-dev
  echo '#include <omp.h>' | "${CXX:-g++}" -fopenmp -E -x c++ - >/dev/null 2>&1 || echo libomp-dev
  [ "${1:-}" = required ] && return
  for header in fmt/core.h:libfmt-dev gtest/gtest.h:libgtest-dev; do
    echo "#include <${header%:*}>" | "${CXX:-g++}" -std=c++20 -E -x c++ - >/dev/null 2>&1 || echo "${header#*:}"
  done
}

system_packages() {
  local missing
  missing=$(missing_packages | xargs)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    { apt-get update -q && apt-get install -qy --no-install-recommends $missing; } || echo "apt-get could not install: $missing" >&2
  fi
  missing=$(missing_packages required | xargs)
  [ -z "$missing" ] || { echo "please install first (Debian's names): $missing" >&2; exit 1; }
  missing=$(missing_packages | xargs)
  [ -z "$missing" ] || echo "note: not installed, so CMake will fetch their sources: $missing" >&2
}

# A virtual environment of our own that sees the named interpreter's torch, so that nothing is ever installed into that one.
use_named_torch() {
  "$1" - <<'PY' > .venv/torch-path
import os, sys
try:
    import torch
except ImportError as error:
    sys.exit(f"PYTHON={sys.executable} has no usable torch: {error}")
if not (2, 11) <= tuple(int(part) for part in torch.__version__.split(".")[:2]) <= (2, 13):
    sys.exit(f"PYTHON={sys.executable}: octet needs torch 2.11 to 2.13 (got {torch.__version__})")
print(os.path.dirname(os.path.dirname(torch.__file__)))
PY
  mv .venv/torch-path "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/named-torch.pth"
}

# The plain version comes with gigabytes of GPU libraries, so the CPU build first.
install_pinned_torch() {
  if .venv/bin/python -m pip install -q "torch==$torch_pin+cpu"; then return; fi
  echo "note: pip's sources have no CPU build of torch $torch_pin for this interpreter: taking the default one (PIP_EXTRA_INDEX_URL can name PyTorch's CPU index)" >&2
  .venv/bin/python -m pip install -q "torch==$torch_pin"
}

# What pyproject.toml asks for building, testing and formatting; the torch that is there must stay the one that is there.
install_requirements() {
  .venv/bin/python - <<'PY'
import importlib.metadata as metadata, pathlib, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
wanted = project["build-system"]["requires"] + project["project"]["dependencies"] + extras["test"] + extras["lint"]
pathlib.Path(".venv/requirements.txt").write_text("\n".join(wanted))
pathlib.Path(".venv/constraints.txt").write_text(f"torch=={metadata.version('torch')}")
PY
  .venv/bin/python -m pip install -q -r .venv/requirements.txt -c .venv/constraints.txt
}

python=$(find_python "${1:-}")
system_packages
"$python" -m venv --clear .venv
if [ -n "${1:-}" ]; then use_named_torch "$1"; else install_pinned_torch; fi
install_requirements
