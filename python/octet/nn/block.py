"""What all QAT blocks have in common: grids they refer to, flags of a forward, activations, batch norm statistics."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..spec import Spec
from .fake_quantize import FakeQuantize


class Activation(IntEnum):
    """What a block does last; the numbers are those of the ops."""

    NONE = 0
    RELU = 1
    RELU6 = 2


def refer(module: nn.Module, name: str, target: nn.Module | None) -> None:
    """Sets an attribute that is not a child: the target is owned, saved and moved by somebody else.

    It lives in `__dict__`, so that deepcopy follows it through its memo and the copy refers to the copy.
    """
    object.__setattr__(module, name, target)


class Block(nn.Module):
    """An operator of the integer network as it is while training. Its output is on the grid `output`.

    Until the grids it reads and writes have ranges, or with fake quantization off, a block is its float composition.
    After that its value is, in training with batch statistics, the fake-quantized composition, and otherwise that of
    the INT8 operator bit for bit.

    Args:
        output: None to own a new grid, or the grid another module owns (tensors that share one, as in a concat).
        activations: what the new grid looks like.
        activation: what the block does last.
    """

    def __init__(
        self, output: FakeQuantize | None = None, activations: Spec | None = None, activation: int = Activation.NONE
    ) -> None:
        super().__init__()
        self.activation = Activation(activation)
        self.low_memory = False
        self.name = ""  # in the prepared model, for errors
        if output is None:
            self.output = FakeQuantize(activations)
        else:
            refer(self, "output", output)

    def inputs(self) -> list[FakeQuantize | None]:
        """The grids of the operands; None where the producer has no grid yet."""
        raise NotImplementedError

    @property
    def active(self) -> bool:
        """Whether this forward is on the grids."""
        return self.output.active and all(grid is not None and grid.active for grid in self.inputs())

    def to_int8(self) -> nn.Module:
        """The module of `octet.nn.int8` that computes the same codes. The grids must have ranges."""
        raise NotImplementedError

    def replace(self, name: str, layer: nn.Module) -> None:
        """Refers to another layer of the same kind from now on; batch norms are one kind, over all processes too."""
        before = getattr(self, name)
        norms = isinstance(before, _BatchNorm) and isinstance(layer, _BatchNorm)
        if not isinstance(layer, type(before)) and not norms:
            kinds = f"{type(before).__name__} (got {type(layer).__name__})"
            raise TypeError(f"{self.name}: a layer can only be replaced by another {kinds}; prepare the model again")
        refer(self, name, layer)

    def _run(self, op: Callable[..., tuple[Tensor, ...]], *args: Any) -> tuple[Tensor, ...]:
        if self.low_memory and self.training and torch.is_grad_enabled():
            return checkpoint(op, *map(_as_of_now, args), use_reentrant=False)
        return op(*args)

    def _grid(self, grid: FakeQuantize | None) -> tuple[Tensor, Tensor, int, int]:
        return (grid or self.output).grid()  # not read while the block is not active

    def _observe(self, low: Tensor, high: Tensor, y: Tensor) -> None:
        if self.output.observes:
            self.output.observe(low, high, y)

    def _bounds(self) -> tuple[int, int]:
        """Rule 6: an activation is a clamp of the output codes, to those of 0 and 6."""
        _, _, qmin, qmax = self.output.grid()
        zero, six = self.output_codes(torch.tensor([0.0, 6.0])).tolist()
        low = qmin if self.activation == Activation.NONE else zero
        return low, six if self.activation == Activation.RELU6 else qmax

    def output_codes(self, x: Tensor) -> Tensor:
        """The uint8 codes of x on the output grid."""
        return ops.quantize_per_tensor(x.to(self.output.scale.device), *self.output.grid(), torch.uint8)


def _as_of_now(value: Any) -> Any:
    """Grids and running statistics change before backward computes a block again; it must see those of the forward."""
    changes = isinstance(value, Tensor) and value.dim() <= 1 and not value.requires_grad
    return value.clone() if changes else value


class NormBlock(Block):
    """A block with an optional batch norm, `bn`, which is not folded while training.

    Attributes:
        freeze_bn: running statistics in training too.
        sync_bn: in training the batches of all processes count as one, as `torch.nn.SyncBatchNorm` does it. Where `bn`
            is of that class this happens by itself, in its process group.
    """

    bn: _BatchNorm | None

    def __init__(self, bn: _BatchNorm | None, weights: Spec | None, **block: Any) -> None:
        super().__init__(**block)
        weights = weights or Spec()
        self.weight_bits, self.per_channel = weights.bits, weights.per_channel
        self.freeze_bn = self.sync_bn = False
        if bn is not None and bn.running_mean is None:
            raise ValueError(f"{type(self).__name__}: batch norm must track running statistics (got None)")

    @property
    def batch_stats(self) -> bool:
        """Whether this forward normalizes by the statistics of the batch."""
        return self.bn is not None and self.bn.training and not self.freeze_bn

    @property
    def process_group(self) -> str:
        """The name of the processes whose batches count as one in this forward; empty for this process alone."""
        synced = self.sync_bn or isinstance(self.bn, nn.SyncBatchNorm)
        if not (synced and self.batch_stats and dist.is_available() and dist.is_initialized()):
            return ""
        group = getattr(self.bn, "process_group", None) or dist.group.WORLD
        return group.group_name if dist.get_world_size(group) > 1 else ""

    def _norm(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float]:
        bn = self.bn
        return (None, None, None, None, 0.0) if bn is None else _statistics(bn)

    def _finish(self, results: tuple[Tensor, ...]) -> Tensor:
        """Writes the statistics of a forward to the buffers."""
        y, low, high, mean, var, count = results
        self._observe(low, high, y)
        if self.batch_stats:
            _update_batch_norm(self.bn, mean, var, count)
        return y


def _statistics(bn: _BatchNorm) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]:
    return bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps


def _update_batch_norm(bn: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    bn.num_batches_tracked.add_(1)
    momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    ops.update_batch_norm_(bn.running_mean, bn.running_var, mean, var, count, momentum)
