"""What to quantize and how: `Spec`, `Recipe`, and `Float` for what must stay as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Any

from torch import nn

HISTOGRAM_OBSERVERS = ("percentile", "mse", "entropy")
OBSERVERS = ("min_max", "moving_average", *HISTOGRAM_OBSERVERS)


class _Precision(Enum):
    FLOAT = "float"

    def __repr__(self) -> str:
        return "octet.Float"


Float = _Precision.FLOAT
"""In `Recipe.overrides`: this module is not quantized."""


@dataclass(frozen=True)
class Spec:
    """How one kind of tensor is quantized.

    Args:
        bits: width of a code, 2 to 8. Activations use unsigned codes [0, 2^bits - 1], weights signed ones without the
            lowest, [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        symmetric: activations only: the zero point is in the middle. Weights always are symmetric.
        observer: activations only: "min_max" keeps the widest range ever seen, "moving_average" follows the batches.
            Three choose the range from a histogram of all values, cutting off what is rare: "percentile", "mse" (least
            squared error) and "entropy" (least divergence). They look at values in float, so at those of `calibrate`
            and of forwards before fake quantization begins; after that the range stays.
        averaging_constant: weight of the newest batch in the moving average, in (0, 1].
        percentile: of the values, how many "percentile" keeps, in (0, 100].
        per_channel: weights only: one scale per output channel instead of one for the tensor.

    Raises:
        ValueError: a value outside of these.
    """

    bits: int = 8
    symmetric: bool = False
    observer: str = "moving_average"
    averaging_constant: float = 0.01
    percentile: float = 99.99
    per_channel: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in range(2, 9):
            raise ValueError(f"Spec: bits must be an integer, 2 to 8 (got {self.bits!r})")
        if self.observer not in OBSERVERS:
            raise ValueError(f"Spec: observer must be one of {OBSERVERS} (got {self.observer!r})")
        for name, most in {"averaging_constant": 1, "percentile": 100}.items():
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= most:
                raise ValueError(f"Spec: {name} must be in (0, {most}] (got {value!r})")
        for name in ("symmetric", "per_channel"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"Spec: {name} must be True or False (got {value!r})")


def is_number(value: Any) -> bool:
    """Whether `value` is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


Override = Spec | _Precision


@dataclass(frozen=True)
class Recipe:
    """What `prepare` does to a model.

    Args:
        activations: the default for every grid.
        weights: the default for every weight.
        overrides: by module name ("layer1.0.conv1"; a name stands for all modules below it too) or by module type.
            `octet.Float` leaves those modules in float; a `Spec` takes the place of both defaults for their weights
            and for the grid of their output. Names win over types, longer names over shorter ones.

    Raises:
        TypeError: a default that is no Spec, overrides that are no mapping, an override that is neither a Spec nor
            octet.Float, or a key that is neither a name nor a class of modules.
    """

    activations: Spec = field(default_factory=Spec)
    weights: Spec = field(default_factory=Spec)
    overrides: Mapping[str | type[nn.Module], Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, spec in {"activations": self.activations, "weights": self.weights}.items():
            if not isinstance(spec, Spec):
                raise TypeError(f"Recipe: {name} must be a Spec (got {spec!r})")
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"Recipe: overrides must be a dict (got {type(self.overrides).__name__})")
        for key, value in self.overrides.items():
            if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
                raise TypeError(f"Recipe: override keys must be module names or types (got {key!r})")
            if not isinstance(value, (Spec, _Precision)):
                raise TypeError(f"Recipe: the override of {key!r} must be octet.Float or a Spec (got {value!r})")

    def override_for(self, name: str, module: nn.Module | None) -> Override | None:
        """The override of the module `name`, or None."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            found = self.overrides.get(".".join(parts[:length]))
            if found is not None:
                return found
        for key, value in self.overrides.items():
            if isinstance(key, type) and isinstance(module, key):
                return value
        return None
