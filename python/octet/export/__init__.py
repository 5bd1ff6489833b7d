"""Files other programs run."""

from .torchscript import torchscript

__all__ = ["torchscript"]
