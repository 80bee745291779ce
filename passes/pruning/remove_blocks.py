"""Remove residual blocks: where a sum adds a branch to the value the branch started from, the branch can go.

    x + f(x)  ->  x

The branch that matters least goes first: for each, the output without it is compared with the output with it.

    damage = sum |z' - z|^2 / sum |z|^2        z: all outputs on the data, z': without the branch

Needs:  a float graph.
Paper:  Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.trace import sizes
from graphopt.analysis.output_error import Probe
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family, value
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.pruning.reconstruct import reconstruct
from graphopt.utils.checks import check_repeatable, check_share


class Branch(NamedTuple):
    """A sum and its two operands: what stays, and the branch."""

    total: Node
    stream: Node
    branch: Node


@dataclass(frozen=True)
class RemoveBlocks:
    """Remove residual branches until `keep_ratio` of the multiply-accumulates is left, or less.

    Attributes:
        keep_ratio: over 0 and under 1.
        data: batches of inputs.
        fit: re-fit all layers on the data afterwards, to give what they gave (see `graphopt.passes.pruning.reconstruct`).

    Raises:
        ValueError: there is no residual branch, or removing all of them does not save as much.
    """

    exact: ClassVar[bool] = False

    keep_ratio: float
    data: Iterable[list[Tensor]] = field(repr=False)
    fit: bool = True

    def __post_init__(self) -> None:
        check_share("keep_ratio", self.keep_ratio)
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        original, target = graph.clone(share_weights=True), self.keep_ratio * cost.macs(graph)
        probe = Probe(original, self.data)
        changes = []
        while cost.macs(graph) > target:
            found = branches(graph)
            if not found:
                left = cost.macs(graph) / cost.macs(original)
                raise ValueError(
                    f"without any residual branch the network still has {left:.0%} of its multiply-accumulates, "
                    f"{self.keep_ratio:.0%} were asked for"
                )
            damages = [probe.damage(_without(graph, number)) for number in range(len(found))]
            least = min(range(len(found)), key=damages.__getitem__)
            total = found[least].total
            changes.append(Change(graph.site(total), f"branch removed, output moved by {damages[least] ** 0.5:.1%}"))
            _skip(graph, found[least])
        if self.fit and changes:
            reconstruct(original, graph, {}, self.data)
        return changes


def branches(graph: Graph) -> list[Branch]:
    """The residual branches: sums of a value and of something computed from it, of the same shape."""
    found = []
    for node in graph.calls():
        operands = [a for a in node.args[:2] if isinstance(a, Node)]
        if family(node) != "add" or len(operands) != 2 or len({tuple(sizes(value(n))) for n in (*operands, node)}) != 1:
            continue
        for stream, branch in (operands, operands[::-1]):
            if branch is not stream and _reaches(stream, branch):
                found.append(Branch(node, stream, branch))
                break
    return found


def _reaches(start: Node, end: Node) -> bool:
    seen, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node is start:
            return True
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return False


def _without(graph: Graph, number: int) -> Graph:
    copy = graph.clone(share_weights=True)
    _skip(copy, branches(copy)[number])
    return copy


def _skip(graph: Graph, found: Branch) -> None:
    graph.replace(found.total, found.stream)
    graph.refresh()
