"""Models in files, whole or not at all: `save` and `load`."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.serialization import config

from .codec import decode, encode
from .convert import Int8Model
from .errors import FileError
from .prepare import QATModel

_FORMAT = "octet model"
_VERSION = 1
_KINDS = {kind.__name__: kind for kind in (QATModel, Int8Model)}


def save(model: QATModel | Int8Model, path: str | os.PathLike[str]) -> None:
    """Writes a QAT or INT8 model to one file: graph, layers, parameters, ranges and modes.

    A file that was there stays as it was until the new one is complete.

    Raises:
        TypeError: another kind of model.
        FileNotFoundError: no such folder.
        IsADirectoryError: the path is a folder.
        FileError: a layer of a class that is neither of torch.nn nor of octet, which could not be read back.
    """
    kind = next((name for name, cls in _KINDS.items() if isinstance(model, cls)), None)
    if kind is None:
        raise TypeError(f"save: the model must be prepared or converted by octet (got {type(model).__name__})")
    check_folder("save", Path(path))
    data, tensors = encode(model)
    content = {"format": _FORMAT, "version": _VERSION, "kind": kind, "model": json.dumps(data), "tensors": tensors}
    write_whole(Path(path), lambda temporary: _write(content, temporary))


def _write(content: dict[str, Any], path: str) -> None:
    with config.patch("save.compute_crc32", True):  # load checks them, whatever the program does with its own files
        torch.save(content, path)


def load(path: str | os.PathLike[str]) -> QATModel | Int8Model:
    """Reads what `save` wrote, on the CPU. Nothing in the file is run.

    Raises:
        FileError: a file that is not ours, is not whole, or was written by a newer octet.
        FileNotFoundError: no file.
    """
    with torch.inference_mode(False):  # see convert
        return _load(path)


def _load(path: str | os.PathLike[str]) -> QATModel | Int8Model:
    with open(path, "rb") as file:
        content = _read(file, path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileError(f"load: {path}: must be written by octet.save (got a file of another program)")
    if content.get("version") != _VERSION:
        raise FileError(f"load: {path}: must have format version {_VERSION} (got {content.get('version')})")
    try:
        model = decode(json.loads(content["model"]), content["tensors"], _KINDS[content["kind"]])
        if isinstance(model, Int8Model):
            model.lowered()  # now rather than in the first call
        return model
    except FileError as error:
        raise FileError(f"load: {path}: {error}") from error
    except Exception as error:  # what a changed file makes the reader raise has many types
        raise FileError(f"load: {path}: must be a whole file written by octet.save (got {error!r})") from error


def _read(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    try:
        damaged = zipfile.ZipFile(file).testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged or foreign file makes torch.load raise has many types
        kind = "a TorchScript file: torch.jit.load" if _is_torchscript(file) else "a damaged or foreign one"
        raise FileError(f"load: {path}: must be a whole file written by octet.save (got {kind})") from error


def _is_torchscript(file: BinaryIO) -> bool:
    try:
        return any("/code/" in name for name in zipfile.ZipFile(file).namelist())
    except zipfile.BadZipFile:
        return False


def check_folder(what: str, path: Path) -> None:
    """Raises FileNotFoundError or IsADirectoryError unless `path` can be a file in a folder that is there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{what}: {path}: the folder must exist (got none)")
    if path.is_dir():
        raise IsADirectoryError(f"{what}: {path}: must be a file (got a folder)")


def write_whole(path: Path, write: Callable[[str], None]) -> None:
    """Calls `write` on a temporary file beside `path` and moves it there when complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """mkstemp makes files only the user reads; a saved model is as readable as any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
