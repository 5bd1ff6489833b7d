"""What is INT8, what stayed float and why: `report`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .convert import Int8Model
from .nn import Block, FakeQuantize
from .prepare import ROOT, QATModel, Row


def report(model: QATModel | Int8Model) -> str:
    """A table for people: every layer of the graph, INT8 or float with the reason, and for a QAT model its grid.

    Raises TypeError for a model that is neither prepared nor converted.
    """
    if not isinstance(model, (QATModel, Int8Model)):
        raise TypeError(f"report: the model must be prepared or converted by octet (got {type(model).__name__})")
    grids = _grids(model) if isinstance(model, QATModel) else {}
    table = [("layer", "what", "runs in", "grid" if grids else "")]
    table += [_line(row, grids) for row in model.rows]
    count = sum(row.int8 for row in model.rows)
    lines = [f"{count} of {len(model.rows)} layers are INT8", "", *_align(table)]
    if model.unreached:
        lines += ["", "not reached by the evaluation graph, left as they are: " + ", ".join(model.unreached)]
    return "\n".join(lines)


def _line(row: Row, grids: dict[str, str]) -> tuple[str, str, str, str]:
    where = "INT8" if row.int8 else f"float: {row.reason}"
    return row.name, row.kind, where, grids.get(row.name, "")


def _grids(model: nn.Module) -> dict[str, str]:
    root = model.get_submodule(ROOT)
    return {name: _describe(m.output) for name, m in root.named_modules() if isinstance(m, Block)}


def _describe(grid: FakeQuantize) -> str:
    if not grid.ready:
        return "no range yet"
    lost = f", {int(grid.nonfinite)} forwards with NaN or inf" if int(grid.nonfinite) else ""
    values = f"[{float(grid.min):.4g}, {float(grid.max):.4g}] scale {float(grid.scale):.4g}"
    return f"{grid.bits} bits {values} zero point {int(grid.zero_point)}{lost}"


def _align(table: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
