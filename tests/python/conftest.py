"""Rules for all tests: no tensor of a quantized dtype, no `quantized::` operator, the same random numbers each time."""

from __future__ import annotations

import warnings

import pytest
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


class _Forbidden:
    """Stands for `torch.ops.quantized`."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"quantized::{name} must not be used")


def _refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("tensors of a quantized dtype must not be created")


@pytest.fixture(autouse=True, scope="session")
def no_quantized_dtypes():
    """In the dispatcher, so that C++ code meets it too."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="(?s).*Overriding a previously registered kernel.*", category=UserWarning
        )
        for name, key in _CREATORS.items():
            library.impl(name, _refuse, key)
    quantized, torch.ops.quantized = torch.ops.quantized, _Forbidden()
    yield
    torch.ops.quantized = quantized


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
