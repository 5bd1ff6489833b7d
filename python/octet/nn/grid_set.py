"""Grids that change together: what a model's root does at the end of its forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from .elementwise import Add
from .fake_quantize import FakeQuantize, commit


class GridSet(nn.Module):
    """The grids of one model, which change together, once at the end of a forward.

    forward() moves what the forward saw into the ranges and solves all grids at once. In a prepared model this is the
    root child `octet`; its children are the blocks, so every key of a quantization buffer begins with `octet.`.
    Its own names begin with an underscore, because the names of its children are those of the model's layers.
    """

    _is_impure = True  # for torch.fx: a call without users is not dead code

    def __init__(self) -> None:
        super().__init__()
        self._grids: list[FakeQuantize] = []
        self._components: list[int] = []  # for each grid the number of the add component it belongs to, or -1
        self._rows: list[dict[str, Any]] = []  # what the report says
        self._links: list[tuple[str, str, str]] = []  # what blocks refer to: block, attribute, name from the root
        self._freeze_bn = False
        self._written: list[tuple[int, ...]] = []  # how often, when the grids were last looked at

    def _take(self, grid: FakeQuantize, component: int = -1) -> None:
        """From now on this commits for `grid`."""
        grid.shared = True
        self._grids.append(grid)
        self._components.append(component)

    def forward(self) -> None:
        if not any(grid.observes for grid in self._grids):
            return
        commit(self._grids, self._components)

    def _follow(self, model: nn.Module) -> None:
        """Takes up what was changed by hand below `model`: layers replaced, and in evaluation mode grids written to."""
        for name, attribute, target in self._links:
            block, layer = _at(self, name), _at(model, target)
            if block.__dict__[attribute] is not layer:
                block.replace(attribute, layer)
        if not self.training:
            written = [_versions(grid) for grid in self._grids]
            if written != self._written:
                self._written = written
                for grid in self._grids:
                    grid.refresh()

    def _forget(self) -> None:
        """Drops what a forward saw that raised midway: only whole forwards count."""
        for grid in self._grids:
            grid.forget()

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._forget() if output is None else self()  # hooks of a forward that raised get None


def _at(module: nn.Module, path: str) -> nn.Module:
    """get_submodule without its checks, which cost more than the walk; this is done in every forward."""
    for name in path.split("."):
        module = module._modules[name]
    return module


def _versions(grid: FakeQuantize) -> tuple[int, ...]:
    return tuple(0 if buffer.is_inference() else buffer._version for buffer in (grid.min, grid.max, grid.enabled))


class DisjointSets:
    """Union-find: things that turned out to be one."""

    def __init__(self) -> None:
        self.parent: dict[Any, Any] = {}

    def find(self, item: Any) -> Any:
        """The representative of the set of `item`; an item nobody mentioned is a set of its own from now on."""
        parent = self.parent.setdefault(item, item)
        if parent == item:
            return item
        self.parent[item] = self.find(parent)
        return self.parent[item]

    def union(self, a: Any, b: Any) -> None:
        self.parent[self.find(b)] = self.find(a)

    def numbers(self, items: list[Any]) -> list[int]:
        """For each item the number of its set, counted from 0 in order of appearance, or -1 if nobody mentioned it."""
        known: dict[Any, int] = {}
        return [known.setdefault(self.find(i), len(known)) if i in self.parent else -1 for i in items]


def bind(module: nn.Module) -> nn.Module:
    """Makes the grids of a module composed by hand change together, at the end of its forward, and returns it.

    Grids that meet in an `Add` get scales that are odd multiples of one unit; without it `Add` refuses to convert.
    `prepare` does the same for the models it makes. Call it once, on the outermost module. A forward that raises leaves
    no trace in the ranges.

    Raises:
        ValueError: an `Add` whose operands have no grid, or grids that are bound already.
    """
    named = {name: child for name, child in module.named_modules() if isinstance(child, FakeQuantize)}
    for name, grid in named.items():
        grid.name = grid.name or name
        if grid.shared:
            raise ValueError(f"bind: {name}: must not be bound already")
    sets = DisjointSets()
    for name, add in module.named_modules():
        if isinstance(add, Add):
            if add.a is None or add.b is None:
                raise ValueError(f"bind: {name}: both operands must have grids (got None)")
            sets.union(add.output, add.a)
            sets.union(add.output, add.b)
    grids = GridSet()
    for grid, component in zip(named.values(), sets.numbers(list(named.values())), strict=True):
        grids._take(grid, component)
    module.register_forward_hook(grids._after_forward, always_call=True)
    return module
