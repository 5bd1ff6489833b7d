"""What `import octet` says where the compiled library cannot be loaded."""

from __future__ import annotations

import pytest
import torch

from octet import _load


def test_the_record_of_the_build_is_of_this_torch():
    assert _load._minor(_load._built_for()) == _load._minor(torch.__version__)


def test_an_extension_built_for_another_torch_names_both(monkeypatch):
    monkeypatch.setattr(_load, "_built_for", lambda: "1.4.0")
    with pytest.raises(ImportError, match=rf"built for torch 1.4.0, running torch {torch.__version__[:4]}"):
        _load.load_library()


def test_a_damaged_library_gives_the_loaders_own_message(monkeypatch, tmp_path):
    broken = tmp_path / "liboctet.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_load, "LIBRARY", broken)
    with pytest.raises(ImportError, match=r"cannot load liboctet.so: .*(file too short|invalid ELF header)"):
        _load.load_library()


def test_a_missing_library_is_an_import_error(monkeypatch, tmp_path):
    monkeypatch.setattr(_load, "LIBRARY", tmp_path / "liboctet.so")
    with pytest.raises(ImportError, match="cannot open shared object file"):
        _load.load_library()
