"""TorchScript files give the bits of the INT8 model at any batch size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octet
from helpers import equal_bits, trained
from models import CASES
from octet.errors import OctetError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.parametrize("name", CASES)
def test_scripted_file_gives_the_same_bits(name, tmp_path):
    qat, inputs = trained(name)
    int8 = octet.convert(qat)
    args, kwargs = inputs(2)
    path = tmp_path / "model.pt"
    octet.export.torchscript(int8, (*args, *kwargs.values()), path)
    loaded = torch.jit.load(path)
    for batch in (1, 7):
        args, kwargs = inputs(batch)
        with torch.no_grad():
            assert equal_bits(loaded(*args, *kwargs.values()), int8(*args, **kwargs))


def test_only_converted_models_are_exported(tmp_path):
    qat, inputs = trained("SharedConv")
    with pytest.raises(TypeError, match=r"must come from octet\.convert"):
        octet.export.torchscript(qat, inputs(2)[0], tmp_path / "model.pt")


def test_a_float_part_that_does_not_compile_leaves_no_file(tmp_path):
    class Untyped(nn.Identity):
        def forward(self, x):
            return sorted(x.tolist(), key=lambda v: v)

    qat, inputs = trained("FloatIsland")
    name = next(n for n, m in qat.named_modules() if isinstance(m, nn.LayerNorm))
    qat.set_submodule(name, Untyped())
    int8 = octet.convert(qat)
    with pytest.raises(OctetError, match=r"the model's float parts must compile"):
        octet.export.torchscript(int8, inputs(2)[0], tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_portable_files_are_refused(tmp_path):
    qat, inputs = trained("SharedConv")
    with pytest.raises(OctetError, match=r"portable must be False"):
        octet.export.torchscript(octet.convert(qat), inputs(2)[0], tmp_path / "model.pt", portable=True)
    assert not list(tmp_path.iterdir())
