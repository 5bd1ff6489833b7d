"""octet: quantization-aware training for PyTorch with the same bits in training, INT8 inference and export."""

from importlib.metadata import version as _version

from ._load import get_cmake_dir, get_include, load_library

load_library()

from . import cpu, errors, export, nn, ops  # noqa: E402
from .calibrate import calibrate  # noqa: E402
from .convert import Int8Model, convert  # noqa: E402
from .io import load, save  # noqa: E402
from .ops import *  # noqa: E402, F403
from .prepare import QATModel, prepare  # noqa: E402
from .report import report  # noqa: E402
from .schedule import Schedule, set_mode  # noqa: E402
from .spec import Float, Recipe, Spec  # noqa: E402
from .verify import verify  # noqa: E402

__version__ = _version("torch-octet")

__all__ = [
    "Float",
    "Int8Model",
    "QATModel",
    "Recipe",
    "Schedule",
    "Spec",
    "calibrate",
    "convert",
    "cpu",
    "errors",
    "export",
    "get_cmake_dir",
    "get_include",
    "load",
    "nn",
    "ops",
    "prepare",
    "report",
    "save",
    "set_mode",
    "verify",
]
