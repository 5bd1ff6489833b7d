"""What single nodes of a captured graph are: tables of modules and ATen ops, and the questions asked of them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.padding import _ConstantPadNd

from . import nn as qnn
from .nn.block import Activation

_aten = torch.ops.aten

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAX_POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

MAX_POOL_FUNCTIONS = {_aten.max_pool1d: 1, _aten.max_pool2d: 2, _aten.max_pool3d: 3}
AVERAGE_FUNCTIONS = {_aten.avg_pool1d: 1, _aten.avg_pool2d: 2, _aten.avg_pool3d: 3}
ADAPTIVE_FUNCTIONS = {_aten.adaptive_avg_pool1d: 1, _aten.adaptive_avg_pool2d: 2, _aten.adaptive_avg_pool3d: 3}

# Ops that only move values or choose among them: rule 9a of docs/numerics.md. All of them take uint8.
MOVES = {
    _aten.cat,
    _aten.chunk,
    _aten.clone,
    _aten.contiguous,
    _aten.expand,
    _aten.flatten,
    _aten.flip,
    _aten.mT,
    _aten.movedim,
    _aten.narrow,
    _aten.permute,
    _aten.pixel_shuffle,
    _aten.repeat,
    _aten.reshape,
    _aten.reshape_as,
    _aten.roll,
    _aten.select,
    _aten.slice,
    _aten.split,
    _aten.split_with_sizes,
    _aten.squeeze,
    _aten.stack,
    _aten.swapaxes,
    _aten.t,
    _aten.tile,
    _aten.transpose,
    _aten.unbind,
    _aten.unflatten,
    _aten.unsqueeze,
    _aten.upsample_nearest1d,
    _aten.upsample_nearest2d,
    _aten.upsample_nearest3d,
}
# Dropout is among them: in evaluation it is the identity. In training its result is off the grid by 1 / (1 - p), and
# the next block takes it as it is: a grid of its own would have to hold a range no evaluation ever sees.
MOVING_MODULES = (
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.PixelShuffle,
    nn.ChannelShuffle,
    *DROPOUTS,
    qnn.MaxPool,
    qnn.int8.Reshape,
    qnn.int8.UpsampleNearest,
)
PADS = (_aten.pad, _aten.constant_pad_nd)


def is_tensor(node: Any) -> bool:
    """Whether the value of `node` is a floating tensor or a list of those."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)


def label(node: Node, modules: dict[str, nn.Module]) -> str:
    """What a node computes: the class of its module or the name of its function."""
    if node.op == "call_module":
        return type(modules[node.target]).__name__
    return getattr(node.target, "__name__", str(node.target))


def tied_operands(node: Node) -> list[Node]:
    """The tensors whose values `node` moves or chooses among, should it do so: they come first in all such ops."""
    first = node.args[0] if node.args else None
    return [n for n in (first if isinstance(first, (list, tuple)) else [first]) if isinstance(n, Node)]


def is_getitem(node: Node) -> bool:
    return node.target is operator.getitem


def keeps_grid(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the values that `node` gives are values that it reads, or zeros. Of max pools only octet's: see fuse."""
    module = modules[node.target] if node.op == "call_module" else None
    moves = node.target in MOVES or type(module) in MOVING_MODULES
    return moves or is_zero_pad(node, module) or is_nearest(module)


def max_pool_dims(node: Node, module: nn.Module | None) -> int:
    """Over how many dimensions `node` takes the largest value, 0 if it is no max pool."""
    return MAX_POOLS.get(type(module), 0) or MAX_POOL_FUNCTIONS.get(node.target, 0)


def max_pool_windows(node: Node, module: nn.Module | None) -> tuple[Any, ...]:
    """What `qnn.MaxPool` takes, from a node of MAX_POOL_FUNCTIONS or, with its module, one of MAX_POOLS."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    dims = max_pool_dims(node, module)
    if module is not None:
        values = [getattr(module, name) for name in names]
    else:
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        values = [given.get(name, default) for name, default in zip(names, (None, None, 0, 1, False), strict=True)]
    kernel, stride, padding, dilation, ceil_mode = values
    stride = kernel if stride is None or stride == [] else stride
    spread = (
        [v] * dims if isinstance(v, int) else list(v) * (dims if len(v) == 1 else 1)
        for v in (kernel, stride, padding, dilation)
    )
    return (*spread, bool(ceil_mode))


def activation_of(node: Node, modules: dict[str, nn.Module]) -> Activation | None:
    """The activation that `node` is, if a clamp of the codes can do it."""
    module = modules[node.target] if node.op == "call_module" else None
    if type(module) is nn.ReLU or node.target is _aten.relu:
        return Activation.RELU
    if type(module) is nn.ReLU6 or node.target is _aten.relu6:
        return Activation.RELU6
    if type(module) is nn.Hardtanh:
        bounds = (module.min_val, module.max_val)
    elif node.target in (_aten.hardtanh, _aten.clamp, _aten.clamp_min):
        given = dict(zip(("min", "max"), node.args[1:3], strict=False)) | node.kwargs
        bounds = (given.get("min"), given.get("max"))
    else:
        return None
    if bounds == (0, None) and node.target is not _aten.hardtanh:  # whose missing bound is 1
        return Activation.RELU
    return Activation.RELU6 if bounds == (0, 6) else None


def is_global_mean(node: Node) -> bool:
    value = node.args[0].meta["val"]
    dims = node.args[1] if len(node.args) > 1 else None
    if value.dim() not in (3, 4, 5) or not isinstance(dims, (list, tuple)) or node.kwargs.get("dtype") is not None:
        return False
    return sorted(d % value.dim() for d in dims) == list(range(2, value.dim()))


def average_pool(node: Node, module: nn.Module | None) -> tuple[type[qnn.Block], tuple[Any, ...]]:
    """The block of an average pool and its first arguments."""
    value = node.args[0].meta["val"]
    if node.target is _aten.mean:
        keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        return (qnn.ADAPTIVE_POOLS if keep else qnn.MEANS)[value.dim() - 2], (1,)
    dims = {**AVERAGE_FUNCTIONS, **ADAPTIVE_FUNCTIONS}.get(node.target) or int(type(module).__name__[-2])
    must(value.dim() == dims + 2, f"average pool: the input must have {dims + 2} dimensions (got {value.dim()})")
    if type(module) in ADAPTIVES or node.target in ADAPTIVE_FUNCTIONS:
        size = module.output_size if module is not None else node.args[1]
        sizes = tuple(size) if isinstance(size, (list, tuple)) else (size,) * dims
        must(all(isinstance(s, int) for s in sizes), f"adaptive average pool: sizes must be numbers (got {sizes})")
        return qnn.ADAPTIVE_POOLS[dims], (sizes,)
    if module is not None:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        args = [getattr(module, name, None) for name in names]
    else:
        defaults = (None, None, 0, False, True, None)
        given = dict(zip(range(6), node.args[1:], strict=False))
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        args = [node.kwargs.get(n, given.get(i, defaults[i])) for i, n in enumerate(names)]
        args[1] = args[1] or args[0]
    spread = [v if isinstance(v, int) or v is None else tuple(v) * (dims if len(v) == 1 else 1) for v in args[:3]]
    return qnn.AVERAGE_POOLS[dims], (*spread, *args[3:])


def is_zero_pad(node: Node, module: nn.Module | None) -> bool:
    if isinstance(module, _ConstantPadNd):
        return module.value == 0
    if node.target not in PADS:
        return False
    named = node.kwargs
    value = node.args[0].meta.get("val")
    if value is not None and len(node.args[1]) >= 2 * value.dim():  # the batch too
        return False
    if node.target is _aten.pad:
        mode, value = (*node.args[2:], *(named.get("mode", "constant"), named.get("value"))[len(node.args) - 2 :])
        return mode == "constant" and value in (None, 0)
    return (node.args[2] if len(node.args) > 2 else named.get("value", 0)) == 0


_RESHAPES = (_aten.reshape, _aten.reshape_as, _aten.squeeze, _aten.unflatten, _aten.unsqueeze)
_UPSAMPLES = (_aten.upsample_nearest1d, _aten.upsample_nearest2d, _aten.upsample_nearest3d)
# Where ops that move values have their dimensions.
_DIMS = {
    _aten.cat: (1,),
    _aten.chunk: (2,),
    _aten.flatten: (1, 2),
    _aten.narrow: (1,),
    _aten.permute: (1,),
    _aten.select: (1,),
    _aten.slice: (1,),
    _aten.split: (2,),
    _aten.split_with_sizes: (2,),
    _aten.swapaxes: (1, 2),
    _aten.transpose: (1, 2),
    _aten.unbind: (1,),
}


def plain_move(node: Node, module: nn.Module | None) -> nn.Module | None:
    """The module that does what a node on a grid does, in terms that networks take as one step with any batch.

    None where the node itself is such; its dimensions are counted from the front then.
    """
    packet = getattr(node.target, "overloadpacket", node.target)
    if packet in _RESHAPES or type(module) is nn.Unflatten:
        return _plain_reshape(node.args[0].meta["val"].shape, node.meta["val"].shape)
    if packet in _UPSAMPLES or is_nearest(module):
        return _plain_upsample(node.args[0].meta["val"].shape, node.meta["val"].shape)
    if packet in _DIMS:
        rank = tied_operands(node)[0].meta["val"].dim()
        count = lambda d: [e % rank for e in d] if isinstance(d, (list, tuple)) else d % rank  # noqa: E731
        node.args = tuple(count(arg) if i in _DIMS[packet] else arg for i, arg in enumerate(node.args))
    return None


def _plain_reshape(before: torch.Size, after: torch.Size) -> nn.Module | None:
    sizes = list(after[1:])
    same_batch = bool(before) and bool(after) and str(before[0]) == str(after[0])
    return qnn.int8.Reshape(sizes) if same_batch and all(isinstance(size, int) for size in sizes) else None


def _plain_upsample(before: torch.Size, after: torch.Size) -> nn.Module | None:
    pairs = list(zip(after[2:], before[2:], strict=True))
    if not all(isinstance(a, int) and isinstance(b, int) and b > 0 and a % b == 0 for a, b in pairs):
        return None
    return qnn.int8.UpsampleNearest([a // b for a, b in pairs])


def is_nearest(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest"


def must(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
