"""A network's choices, what they cost, and the passes that make them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.amounts import ENERGY
from graphopt.compiler.budget.costs import VECTOR_BYTES, Costs
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.energy import energy, energy_terms, precisions
from graphopt.compiler.budget.formats import LayerFormats
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.work import Work
from graphopt.ir import cost
from graphopt.ir.calls import value
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.ir.quantizers import is_quantized
from graphopt.passes.pruning import Prune, RemoveBlocks
from graphopt.passes.pruning.removal import RemovalPlan
from graphopt.passes.quantization import LayerFormat
from graphopt.searching import Assignment, Term
from graphopt.targets import Target


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
    formats: LayerFormats
    costs: Costs
    prune: Prune

    @classmethod
    def of(cls, work: Work, amounts: Collection[str]) -> Spending:
        """With the choices that budgets of these amounts are spent over."""
        data = None if work.data.synthetic else work.data
        graph = work.graph.clone(share_weights=True).eval()
        constant_weights(graph)
        gather_shuffles(graph)
        trace = Trace(graph)
        multiple, checkpoint = work.target.kernels.channel_multiple, work.options.quantization.checkpoint
        prune = Prune(keep_ratio=0.5, data=data, round_to=multiple, checkpoint=checkpoint)
        estimator = work.options.quantization.estimator
        formats = LayerFormats.of(graph, work.target, data if formats_are_open(work) else None, amounts, estimator)
        widths, ranks = Widths.of(prune, graph, trace), Ranks.of(graph, data, multiple)
        return cls.made(graph, trace, widths, ranks, data, prune, formats)

    @classmethod
    def made(
        cls,
        graph: Graph,
        trace: Trace,
        widths: Widths,
        ranks: Ranks,
        data: Any,
        prune: Prune,
        formats: LayerFormats | None = None,
    ) -> Spending:
        """With the blocks that the data know to be dispensable."""
        depths, formats = Depths.of(graph, data), formats or LayerFormats([], None)
        costs = Costs(graph, trace, widths, ranks, depths, formats)
        return cls(graph, trace, widths, ranks, depths, formats, costs, prune)

    @property
    def choices(self) -> list[Any]:
        return [*self.widths.choices, *self.ranks.choices, *self.depths.choices, *self.formats.choices]

    def terms(self, work: Work, budget: Collection[str]) -> dict[str, list[Term]]:
        """Of what is counted, not timed."""
        found = {}
        if "macs" in budget:
            found["macs"] = self.costs.macs()
        if "bytes" in budget:
            found["bytes"] = self.costs.weights(weight_bytes(work.target))
        if ENERGY in budget:
            found[ENERGY] = energy_terms(self.costs, work.target.energy, work.target)
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

    def layer_formats(self, assignment: Assignment, graph: Graph) -> dict[str, LayerFormat | None]:
        """Of these choices, what `Quantize(formats=)` takes for a graph that was made by them."""
        formats = assignment[len(self.choices) - len(self.formats.choices) :]
        return self.formats.chosen(formats, {graph.site(node) for node in graph.calls()})

    def counts(self, assignment: Assignment, graph: Graph, target: Target) -> dict[str, float]:
        """What a float network of these choices costs once its weights have the target's format, or the chosen one."""
        formats = assignment[len(self.choices) - len(self.formats.choices) :]
        bits = {
            c.name: self.formats.bits(n, o) for n, (c, o) in enumerate(zip(self.formats.choices, formats, strict=True))
        }
        each, stored, names = weight_bytes(target), 0.0, {name for name, _ in graph.named_parameters()}
        for node in graph.nodes:
            if node.op == "get_attr" and str(node.target) in names:
                numbers = value(node)
                own = bits.get(graph.site(next(iter(node.users), node)), 8 * each) / 8
                stored += numbers.numel() * (own if numbers.dim() > 1 else VECTOR_BYTES)
        spent = energy(graph, target.energy, precisions(target, bits))
        return {"macs": float(cost.macs(graph)), "bytes": stored, ENERGY: spent}

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
        width, rank, depth = len(self.widths.choices), len(self.ranks.choices), len(self.depths.choices)
        widths, ranks = assignment[:width], assignment[width : width + rank]
        depths = assignment[width + rank : width + rank + depth]
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


def weight_bytes(target: Target) -> float:
    """Of one element of a weight in the target's format."""
    return float(getattr(target.formats.weights, "bits", 8)) / 8


def formats_are_open(work: Work) -> bool:
    """Whether number formats may be chosen: nothing else says them, and data can be gone through several times."""
    asked = work.options.quantization
    said = (asked.formats, asked.average_bits, asked.weight_only, asked.max_drop, work.request.train)
    return not (any(said) or is_quantized(work.original) or work.data.one_shot)
