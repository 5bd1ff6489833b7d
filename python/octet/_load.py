"""Loads the compiled library, or says why it cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
LIBRARY = PACKAGE / "lib" / "liboctet.so"


def get_include() -> str:
    """The folder to give a C++ compiler for `#include "octet/octet.h"`."""
    return str(PACKAGE / "include")


def get_cmake_dir() -> str:
    """The folder of the CMake package, for `cmake -DOctet_DIR=...`."""
    return str(PACKAGE / "share" / "cmake" / "Octet")


def load_library() -> None:
    """Loads liboctet, which registers the ops.

    Raises:
        ImportError: the library is missing, was built for another torch, or the loader refused it; with its message.
    """
    built_for = _built_for()
    if built_for is not None and _minor(built_for) != _minor(torch.__version__):
        raise ImportError(_message(built_for, "it was built for another torch"))
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(_message(built_for, str(error.__cause__ or error))) from error  # the cause is the loader


def _built_for() -> str | None:
    """The torch version the library was built for; the build wrote it down."""
    record = Path(get_cmake_dir()) / "torch_version.txt"
    return record.read_text().strip() if record.exists() else None


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _message(built_for: str | None, reason: str) -> str:
    return (
        f"octet: cannot load {LIBRARY.name}: {reason} "
        f"(built for torch {built_for or 'unknown'}, running torch {torch.__version__}); install octet for this torch"
    )
