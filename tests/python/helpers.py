"""Small things many tests do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import octet
from models import Inputs, build


def equal_bits(a: Any, b: Any) -> bool:
    """Whether two results, tensors in any containers, are the same bit for bit."""
    same = (
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)
    )
    return all(same)


def train(qat: nn.Module, inputs: Any, steps: int = 4, batch: int = 4) -> None:
    """A few steps of an ordinary loop, on data that change."""
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    qat.train()
    for _ in range(steps):
        args, kwargs = inputs(batch)
        loss = sum(y.float().square().mean() for y in tree_leaves(qat(*args, **kwargs)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(name: str, recipe: octet.Recipe | None = None, steps: int = 4) -> tuple[octet.QATModel, Inputs]:
    """The network of that name, prepared and trained a little, in evaluation mode; the caller's own copy."""
    key = (name, repr(recipe), steps)
    if key not in _TRAINED:
        model, inputs = build(name)
        args, kwargs = inputs(2)
        qat = octet.prepare(model, args, recipe, kwargs=kwargs)
        train(qat, inputs, steps)
        _TRAINED[key] = (qat.eval(), inputs)
    qat, inputs = _TRAINED[key]
    return copy.deepcopy(qat), inputs


_TRAINED: dict[tuple[str, str, int], tuple[octet.QATModel, Inputs]] = {}
