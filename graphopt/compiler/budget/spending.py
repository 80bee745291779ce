"""A network's choices, what they cost, and the passes that make them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.costs import VECTOR_BYTES, Costs
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.work import Work
from graphopt.ir import cost
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.passes.pruning import Prune, RemoveBlocks
from graphopt.passes.pruning.removal import RemovalPlan
from graphopt.searching import Assignment, Term


@dataclass(frozen=True)
class Spending:
    """A network's choices and what they cost.

    Attributes:
        graph: as the choices number its calls and units.
        prune: what widths are measured with, and pruned by.
    """

    graph: Graph
    trace: Trace
    widths: Widths
    ranks: Ranks
    depths: Depths
    costs: Costs
    prune: Prune

    @classmethod
    def of(cls, work: Work) -> Spending:
        data = None if work.data.synthetic else work.data
        graph = work.graph.clone(share_weights=True).eval()
        constant_weights(graph)
        gather_shuffles(graph)
        trace = Trace(graph)
        multiple, checkpoint = work.target.kernels.channel_multiple, work.options.quantization.checkpoint
        prune = Prune(keep_ratio=0.5, data=data, round_to=multiple, checkpoint=checkpoint)
        return cls.made(graph, trace, Widths.of(prune, graph, trace), Ranks.of(graph, data, multiple), data, prune)

    @classmethod
    def made(cls, graph: Graph, trace: Trace, widths: Widths, ranks: Ranks, data: Any, prune: Prune) -> Spending:
        """With the blocks that the data know to be dispensable."""
        depths = Depths.of(graph, data)
        return cls(graph, trace, widths, ranks, depths, Costs(graph, trace, widths, ranks, depths), prune)

    @property
    def choices(self) -> list[Any]:
        return [*self.widths.choices, *self.ranks.choices, *self.depths.choices]

    def terms(self, work: Work, budget: Collection[str]) -> dict[str, list[Term]]:
        """Of what is counted, not timed."""
        found = {}
        if "macs" in budget:
            found["macs"] = self.costs.macs()
        if "bytes" in budget:
            found["bytes"] = self.costs.weights(weight_bytes(work))
        return found

    def without_ranks(self, assignment: Assignment) -> Assignment:
        """The same with every layer whole."""
        return tuple(0 if c.kind == "rank" else o for c, o in zip(self.choices, assignment, strict=True))

    def passes(self, assignment: Assignment) -> list[Pass]:
        """What makes these choices, fitted to the data where there are any."""
        return self._steps(assignment, self.prune)

    def mock(self, assignment: Assignment) -> Graph:
        """A copy of these widths, ranks and blocks, not fitted: for measuring time."""
        copy = self.graph.clone(share_weights=True)
        for step in self._steps(assignment, Prune(keep_ratio=0.5, compensate="none")):
            step(copy)
        return copy

    def _steps(self, assignment: Assignment, prune: Prune) -> list[Pass]:
        """With the data of `prune`."""
        blocks, removal, chains = self._gone(assignment)
        data, checkpoint = prune.data, prune.checkpoint
        found: list[Pass] = []
        if blocks:
            found.append(RemoveBlocks(data=data, blocks=blocks, fit=data is not None, checkpoint=checkpoint))
        for kind in dict.fromkeys(group.kind for group in removal.groups if group.gone):
            layers: Any = removal.layers(kind)
            found.append(replace(prune, keep_ratio=None, layers=layers, kinds=[cast("Any", kind)]))
        return found + self.ranks.passes(chains, data, checkpoint)

    def _gone(self, assignment: Assignment) -> tuple[list[str], RemovalPlan, Assignment]:
        """Blocks by name, and the units and ranks of what is not in them as a whole."""
        width, rank = len(self.widths.choices), len(self.ranks.choices)
        widths, ranks, depths = assignment[:width], assignment[width : width + rank], assignment[width + rank :]
        chosen = [number for number, option in enumerate(depths) if option]
        calls = {node for number in chosen for node in self.depths.calls[number]}
        removal = self.widths.removal(widths)
        left = [
            units
            for units, group in zip(removal.groups, self.widths.plan.groups, strict=True)
            if not all(reader in calls for member in group.members for reader in member.node.users)
        ]
        chains = tuple(0 if calls.issuperset(self.ranks.calls(n)) else option for n, option in enumerate(ranks))
        names = [self.depths.choices[number].options[1].value for number in chosen]
        return names, replace(removal, groups=left), chains


def weight_bytes(work: Work) -> float:
    """Of one element of a weight as the target stores it."""
    return float(getattr(work.target.formats.weights, "bits", 8)) / 8


def counts(graph: Graph, each: float) -> dict[str, float]:
    """What a float network costs once its weights have so many bytes each."""
    sizes = [(parameter.numel(), parameter.dim()) for _, parameter in graph.named_parameters()]
    stored = sum(size * (each if dims > 1 else VECTOR_BYTES) for size, dims in sizes)
    return {"macs": float(cost.macs(graph)), "bytes": stored}
