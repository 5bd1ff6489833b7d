"""How lowering writes the nodes that only move codes; see `network`. No step touches dimension 0, the batch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from .nn import int8

# Opcodes of csrc/octet/kernels/network.h.
FLATTEN, _PERMUTE, _RESHAPE, _SLICE, _CHUNK, _PAD, _UPSAMPLE = 12, *range(20, 26)
_TRANSPOSE, _SELECT, _PIXEL_SHUFFLE, _CHANNEL_SHUFFLE = range(26, 30)
_END = 2**62

Writer = Callable[[Any, fx.Node], None]

_aten = torch.ops.aten


def move_writer(node: fx.Node, module: nn.Module | None) -> Writer | None:
    """How to write the node, None where no step moves as it does."""
    if module is not None:
        make = _MODULES.get(type(module))
        return make(module) if make is not None else None
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        return _piece(*node.args) if isinstance(node.args[0], fx.Node) else None
    packet = getattr(node.target, "overloadpacket", node.target)
    if packet in _IDENTITIES:
        return _same
    if node.kwargs:
        return None
    if packet in _PIECES:
        return _same if _piece(node, 0) and all(_is_piece(user) for user in node.users) else None
    make = _FUNCTIONS.get(packet)
    return make(*node.args[1:]) if make is not None else None


def _same(program: Any, node: fx.Node) -> None:
    """The value of the input; for what gives several pieces each of these takes its own from there."""
    (program.index[node],) = program.values(node)


def _step(opcode: int, *arguments: Any) -> Writer:
    return lambda program, node: program.step(node, opcode, program.values(node), *arguments)


def _along(dim: Any, opcode: int, *arguments: Any) -> Writer | None:
    return _step(opcode, dim, *arguments) if isinstance(dim, int) and dim > 0 else None


def _slice(dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Writer | None:
    bounds = (start or 0, _END if end is None else min(end, _END), step)
    return _along(dim, _SLICE, *bounds) if all(isinstance(bound, int) for bound in bounds) else None


def _permute(dims: list[int]) -> Writer | None:
    return _step(_PERMUTE, len(dims), dims) if dims[0] == 0 and min(dims) >= 0 else None


def _transpose(a: int, b: int) -> Writer | None:
    return _step(_TRANSPOSE, a, b) if min(a, b) > 0 else None


def _flatten(start: int = 0, end: int = -1) -> Writer | None:
    return _along(start, FLATTEN, end)


_IDENTITIES = (_aten.clone, _aten.contiguous, _aten.alias, _aten.detach)
_FUNCTIONS: dict[Any, Callable[..., Writer | None]] = {
    _aten.flatten: _flatten,
    _aten.permute: _permute,
    _aten.transpose: _transpose,
    _aten.swapaxes: _transpose,
    _aten.slice: _slice,
    _aten.narrow: lambda dim, start, length: _slice(dim, start, start + length),
    _aten.select: lambda dim, index: _along(dim, _SELECT, index),
    _aten.pixel_shuffle: lambda factor: _step(_PIXEL_SHUFFLE, factor),
    _aten.channel_shuffle: lambda groups: _step(_CHANNEL_SHUFFLE, groups),
}

# What gives several tensors: how to write piece i.
_PIECES: dict[Any, Callable[..., Writer | None]] = {
    _aten.chunk: lambda i, chunks, dim=0: _along(dim, _CHUNK, chunks, i),
    _aten.split: lambda i, size, dim=0: _split(i, size, dim),
    _aten.split_with_sizes: lambda i, sizes, dim=0: _split(i, sizes, dim),
    _aten.unbind: lambda i, dim=0: _along(dim, _SELECT, i),
}


def _split(i: int, size: int | list[int], dim: int) -> Writer | None:
    if isinstance(size, int):
        return _slice(dim, i * size, (i + 1) * size)
    return _slice(dim, sum(size[:i]), sum(size[: i + 1]))


def _piece(source: fx.Node, i: Any) -> Writer | None:
    make = _PIECES.get(getattr(source.target, "overloadpacket", source.target))
    known = make is not None and not source.kwargs and isinstance(i, int) and i >= 0
    return make(i, *source.args[1:]) if known else None


def _is_piece(node: fx.Node) -> bool:
    return node.target is operator.getitem and _piece(*node.args) is not None


_MODULES: dict[type[nn.Module], Callable[[Any], Writer | None]] = {
    nn.Flatten: lambda m: _flatten(m.start_dim, m.end_dim),
    nn.PixelShuffle: lambda m: _step(_PIXEL_SHUFFLE, m.upscale_factor),
    nn.ChannelShuffle: lambda m: _step(_CHANNEL_SHUFFLE, m.groups),
    int8.Reshape: lambda m: _step(_RESHAPE, len(m.sizes), m.sizes),
    int8.UpsampleNearest: lambda m: _step(_UPSAMPLE, [1] * (3 - len(m.factors)), m.factors),
    int8.Pad: lambda m: _step(_PAD, m.zero_point, len(m.pad), m.pad),
}
