"""octet: quantization-aware training for PyTorch with the same bits in training, INT8 inference and export."""

from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).parent / "lib" / "liboctet.so")
