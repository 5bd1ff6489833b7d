"""Where the grids of a model are and what ties them: rule 9 of docs/numerics.md."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch.fx import Graph, Node

from .fuse import Island, Operator, Role, Tied
from .nn.grid_set import DisjointSets
from .patterns import is_tensor


@dataclass
class GridPlan:
    """Which values are on a grid and which of them share one.

    Attributes:
        classes: for each node whose value is on a grid the first node of its class.
        components: for each first node the number of its add component, -1 for none.
        entries: nodes that compute in float, model inputs among them, whose values are put on a grid for operators.
    """

    classes: dict[Node, Node]
    components: dict[Node, int]
    entries: list[Node]


def plan_grids(graph: Graph, roles: dict[Node, Role]) -> GridPlan:
    """Places the grids: every operator's result, and what an operator reads directly or through tied nodes."""
    wanted = _wanted(graph, roles)
    born = _born(graph, roles, wanted)
    on_grid = [node for node in graph.nodes if node in born or (node in wanted and is_tensor(node))]
    classes, components = DisjointSets(), DisjointSets()
    for node in on_grid:
        classes.find(node)
        if isinstance(role := roles.get(node), Tied):
            for operand in role.operands:
                classes.union(operand, node)
    _join_calls(roles, classes)
    for node, role in roles.items():
        if isinstance(role, Operator) and role.adds:
            for operand in role.operands:
                components.union(classes.find(operand), classes.find(node))
    first: dict[Hashable, Node] = {}
    for node in on_grid:
        first.setdefault(classes.find(node), node)
    return GridPlan(
        classes={node: first[classes.find(node)] for node in on_grid},
        components=dict(zip(first.values(), components.numbers(list(first)), strict=True)),
        entries=[node for node in on_grid if node not in born],
    )


def _wanted(graph: Graph, roles: dict[Node, Role]) -> set[Node]:
    """Nodes that an operator reads, directly or through tied nodes."""
    readers = [role for role in roles.values() if isinstance(role, Operator)]
    wanted = {operand for role in readers for operand in role.operands}
    for node in reversed(graph.nodes):
        if node in wanted and isinstance(role := roles.get(node), Tied):
            wanted.update(role.operands)
    return wanted


def _born(graph: Graph, roles: dict[Node, Role], wanted: set[Node]) -> set[Node]:
    """Nodes whose values are on a grid because of what computes them."""
    born: set[Node] = set()
    for node in graph.nodes:
        role = roles.get(node)
        tied = isinstance(role, Tied) and (node in wanted or all(operand in born for operand in role.operands))
        if isinstance(role, Operator) or tied:
            born.add(node)
    return born


def _join_calls(roles: dict[Node, Role], classes: DisjointSets) -> None:
    """A module called twice has one grid for what it reads and one for what it gives."""
    first: dict[Hashable, tuple[Node, Operator]] = {}
    for node, role in roles.items():
        if not isinstance(role, Operator):
            continue
        other, call = first.setdefault(role.key, (node, role))
        for a, b in zip((other, *call.operands), (node, *role.operands), strict=True):
            classes.union(a, b)


def island_reasons(roles: dict[Node, Role], plan: GridPlan) -> dict[Node, str]:
    """Why each node that computes in float does."""
    reasons = {node: role.reason for node, role in roles.items() if isinstance(role, Island)}
    for node, role in roles.items():
        if isinstance(role, Tied) and node not in plan.classes:
            reasons[node] = "its input is float and no INT8 operator follows"
    return reasons
