"""QAT convolutions and linear layers, with or without batch norm and ReLU behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from .. import ops
from ..spec import Spec
from . import int8
from .block import Activation, NormBlock, refer
from .fake_quantize import FakeQuantize


class _WeightBlock(NormBlock):
    """A layer with a weight, the child `conv` or `linear`; maybe a batch norm, `bn`; the grid of the result, `output`.

    Args:
        *args, **kwargs: as for the float layer (`nn.Conv2d`, `nn.Linear`, ...).
        input: the grid of the operand, owned by its producer; without one the block stays float.
        output, activations: as in `Block`.
        weights: bits and per_channel of the weight codes.
        eps, momentum: of the batch norm, in blocks that have one.
    """

    layer_name = "conv"
    layer_type: type[nn.Module]
    norm_type: type[nn.Module] | None = None
    default_activation = Activation.NONE

    def __init__(
        self,
        *args: Any,
        input: FakeQuantize | None = None,
        output: FakeQuantize | None = None,
        activations: Spec | None = None,
        weights: Spec | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **kwargs: Any,
    ) -> None:
        layer = self.layer_type(*args, **kwargs)
        bn = self.norm_type(layer.weight.size(0), eps, momentum) if self.norm_type else None
        activation = self.default_activation
        super().__init__(bn, weights, output=output, activations=activations, activation=activation)
        setattr(self, self.layer_name, layer)
        self.bn = bn
        refer(self, "input", input)

    @classmethod
    def wrap(
        cls,
        layer: nn.Module,
        bn: nn.Module | None = None,
        activation: int | None = None,
        *,
        input: FakeQuantize,
        output: FakeQuantize | None,
        activations: Spec,
        weights: Spec,
    ) -> Self:
        """A block over modules that stay where they are: parameters and state_dict keys remain theirs."""
        block = cls.__new__(cls)
        last = cls.default_activation if activation is None else activation
        NormBlock.__init__(block, bn, weights, output=output, activations=activations, activation=last)
        for name, module in {cls.layer_name: layer, "bn": bn, "input": input}.items():
            refer(block, name, module)
        return block

    def inputs(self) -> list[FakeQuantize | None]:
        return [self.input]

    def _check_input(self, x: Tensor, dims: int, axis: int, channels: int) -> None:
        if x.dim() != dims or dims == 0 or x.size(axis) != channels:
            wanted = f"{dims} dimensions and size {channels} in dimension {axis}"
            raise ValueError(f"{self.name or type(self).__name__}: the input must have {wanted} (got {list(x.shape)})")

    def _args(self) -> tuple[Any, ...]:
        """The tail all ops of this family share."""
        grids = (*self._grid(self.input), *self.output.grid())
        flags = (self.active, self.batch_stats, self.output.observes)
        return (int(self.activation), self.weight_bits, self.per_channel, *grids, *flags)

    def _run(self, op: Callable[..., tuple[Tensor, ...]], *args: Any) -> tuple[Tensor, ...]:
        if self.active:  # then the op itself knows how to keep less
            return op(*args, self.low_memory, self.process_group)
        return super()._run(op, *args, False, self.process_group)

    def _fold(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        scales = (self.input.scale, self.output.scale)
        return ops.fold(layer.weight, layer.bias, *self._norm(), *scales, self.weight_bits, self.per_channel)

    def _requantization(self) -> tuple[int, int, int, int]:
        """Input zero point, output zero point and the bounds of the output codes."""
        return int(self.input.zero_point), int(self.output.zero_point), *self._bounds()


class _Conv(_WeightBlock):
    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        self._check_input(x, conv.weight.dim(), 1, conv.in_channels)
        args = (x, conv.weight, conv.bias, *self._norm(), *int8.geometry(conv), *self._args())
        return self._finish(self._run(ops.conv_block, *args))

    def to_int8(self) -> nn.Module:
        kind = int8.CONVOLUTIONS[self.conv.weight.dim()]
        return kind(*self._fold(self.conv), *int8.geometry(self.conv), *self._requantization())


class Conv1d(_Conv):
    layer_type = nn.Conv1d


class Conv2d(_Conv):
    layer_type = nn.Conv2d


class Conv3d(_Conv):
    layer_type = nn.Conv3d


class ConvReLU1d(Conv1d):
    default_activation = Activation.RELU


class ConvReLU2d(Conv2d):
    default_activation = Activation.RELU


class ConvReLU3d(Conv3d):
    default_activation = Activation.RELU


class ConvBn1d(Conv1d):
    norm_type = nn.BatchNorm1d


class ConvBn2d(Conv2d):
    norm_type = nn.BatchNorm2d


class ConvBn3d(Conv3d):
    norm_type = nn.BatchNorm3d


class ConvBnReLU1d(ConvBn1d):
    default_activation = Activation.RELU


class ConvBnReLU2d(ConvBn2d):
    default_activation = Activation.RELU


class ConvBnReLU3d(ConvBn3d):
    default_activation = Activation.RELU


class Linear(_WeightBlock):
    layer_name = "linear"
    layer_type = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear
        self._check_input(x, x.dim(), -1, linear.in_features)
        args = (x, linear.weight, linear.bias, *self._norm(), *self._args())
        return self._finish(self._run(ops.linear_block, *args))

    def to_int8(self) -> nn.Module:
        return int8.Linear(*self._fold(self.linear), *self._requantization())


class LinearReLU(Linear):
    default_activation = Activation.RELU


class LinearBn1d(Linear):
    """For inputs of two dimensions: batch norm counts dimension 1 as the channels."""

    norm_type = nn.BatchNorm1d


class LinearBnReLU1d(LinearBn1d):
    default_activation = Activation.RELU


def block_type(layer: nn.Module, has_bn: bool, activation: int) -> type[_WeightBlock]:
    """The block that stands for `layer`, a Conv1d, 2d, 3d or Linear, and what follows it."""
    relu = activation != Activation.NONE
    candidates = (_Conv, Linear)
    stack = [kind for base in candidates for kind in _subclasses(base) | {base}]
    for kind in stack:
        fits = getattr(kind, "layer_type", None) is type(layer) and (kind.norm_type is not None) == has_bn
        if fits and (kind.default_activation is Activation.RELU) == relu:
            return kind
    raise TypeError(f"no block for {type(layer).__name__}")


def _subclasses(kind: type) -> set[type]:
    return {s for child in kind.__subclasses__() for s in _subclasses(child) | {child}}
