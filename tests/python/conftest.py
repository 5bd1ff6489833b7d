"""Rules for all tests: no tensor of a quantized dtype, no `quantized::` operator, the same random numbers each time."""

from __future__ import annotations

import os
import warnings

import pytest

# Compiled graphs on disk name the ops of the build they were made with: never take them from an earlier one.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch

_CREATORS = {
    "_empty_affine_quantized": "QuantizedCPU",
    "_empty_per_channel_affine_quantized": "QuantizedCPU",
    "_make_per_channel_quantized_tensor": "CPU",
    "_make_per_tensor_quantized_tensor": "CPU",
    "quantize_per_channel": "CPU",
    "quantize_per_tensor": "CPU",
    "quantize_per_tensor_dynamic": "CPU",
}


def _refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("tensors of a quantized dtype must not be created, nor quantized:: operators called")


@pytest.fixture(autouse=True, scope="session")
def no_quantized_dtypes():
    """In the dispatcher, so that C++ code meets it too."""
    aten, quantized = (torch.library.Library(namespace, "IMPL") for namespace in ("aten", "quantized"))
    operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("quantized::")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel.*")
        for name, key in _CREATORS.items():
            aten.impl(name, _refuse, key)
        for name in operators:
            quantized.impl(name.removeprefix("quantized::"), _refuse, "CPU")
    return aten, quantized  # registrations end with these objects


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
