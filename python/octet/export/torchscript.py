"""TorchScript: a file that a C++ program linked with liboctet loads and runs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..convert import Int8Model
from ..errors import OctetError
from ..io import check_folder, write_whole


def torchscript(
    model: Int8Model, args: tuple[Any, ...], path: str | os.PathLike[str], portable: bool = False
) -> torch.jit.ScriptModule:
    """Compiles the INT8 model with `torch.jit.script`, checks it against `model` on `args`, and writes it to `path`.

    Any batch size runs. The program that loads the file must be linked with liboctet, which registers the ops.

    Args:
        model: what `octet.convert` returned.
        args: an example call, positional.
        path: the file; written whole or not at all.
        portable: a file of torch's own operators only, for programs without liboctet: not supported by this version.

    Returns:
        The scripted module.

    Raises:
        TypeError: not a converted model, or args that are no tuple.
        FileNotFoundError: no such folder.
        OctetError: TorchScript cannot compile a float part of the model, or computes something else; `portable=True`.
    """
    if not isinstance(model, Int8Model):
        raise TypeError(f"torchscript: the model must come from octet.convert (got {type(model).__name__})")
    if not isinstance(args, tuple):
        raise TypeError(f"torchscript: args must be a tuple of inputs (got {type(args).__name__})")
    check_folder("torchscript", Path(path))
    if portable:
        raise OctetError("torchscript: portable must be False, files need liboctet's operators (got True)")
    try:
        with warnings.catch_warnings():
            # About the constructor of torch.fx.GraphModule; nothing of the model is meant.
            warnings.filterwarnings("ignore", message=".*instance-level annotations on empty non-base types.*")
            scripted = torch.jit.script(model.lowered().eval())
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OctetError(f"torchscript: the model's float parts must compile (got {reason})") from error
    with torch.no_grad():
        _check_equal(model(*args), scripted(*args))
    write_whole(Path(path), scripted.save)
    return scripted


def _check_equal(expected: Any, actual: Any) -> None:
    leaves = torch.utils._pytree.tree_leaves
    for want, got in zip(leaves(expected), leaves(actual), strict=True):
        if isinstance(want, Tensor) and not torch.equal(want, got):
            raise OctetError("torchscript: the scripted model must give the bits of the model (got others)")
