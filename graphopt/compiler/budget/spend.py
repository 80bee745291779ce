"""A budget becomes passes: choices, what they cost, the best within the limits, and a look at the runtime whether it holds.

1. Widths of all groups of channels, ranks of layers and residual blocks are choices, each with the damage it does to the output,
   measured alone.
2. What they cost is the sum of terms (`costs.py`); milliseconds are those of the network's parts, timed by themselves on the
   runtime, times what the whole takes for the sum of its parts.
3. A solver chooses (`graphopt.searching`).
4. Where time is limited, a network of these widths with made-up weights is lowered and timed in turn with the float original.
   Where it misses the limit, that of the prediction is moved by as much, and the choice is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.artifacts.artifact import Artifact
from graphopt.compiler.budget.amounts import TIMED, limit
from graphopt.compiler.budget.costs import Costs
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.part_times import PartTimes
from graphopt.compiler.recipes import timed
from graphopt.compiler.work import Work
from graphopt.data.calibration import synthetic
from graphopt.ir import cost
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.passes.pruning import Prune, RemoveBlocks
from graphopt.passes.pruning.removal import RemovalPlan
from graphopt.passmanager.runner import run
from graphopt.searching import Assignment, Problem, Term, solve

LOG = logging.getLogger(__name__)
ROUNDS = 4  # of choosing and timing
OVER, UNDER = 1.02, 0.95  # of the limit: what a measured time may miss it by
FLOAT_BYTES = 4


def spend(work: Work, budget: Mapping[str, float]) -> list[Pass]:
    """The passes that bring the network of a work into a budget; the report gets what was predicted and measured.

    Raises:
        InputError: the budget is out of reach, or the network has nothing to choose.
    """
    spending = Spending.of(work)
    if {*TIMED} & {*budget}:
        return spending.passes(_within_time(work, spending, budget))
    problem = Problem(spending.choices, spending.counted(work, budget), spending.limits(work, budget))
    return spending.passes(solve(problem))


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

    def counted(self, work: Work, budget: Mapping[str, float]) -> dict[str, list[Term]]:
        """The terms of what is counted, not timed."""
        found = {}
        if "macs" in budget:
            found["macs"] = self.costs.macs()
        if "bytes" in budget:
            found["bytes"] = self.costs.weights(getattr(work.target.formats.weights, "bits", 8) / 8)
        return found

    def limits(self, work: Work, budget: Mapping[str, float]) -> dict[str, float]:
        whole = {"macs": cost.macs(work.original), "bytes": FLOAT_BYTES * cost.parameters(work.original)}
        return {name: limit(budget[name], whole[name]) for name in whole if name in budget}

    def passes(self, assignment: Assignment) -> list[Pass]:
        """What makes these choices, fitted to the data where there are any."""
        blocks, removal, chains = self._gone(assignment)
        data, checkpoint = self.prune.data, self.prune.checkpoint
        found: list[Pass] = []
        if blocks:
            found.append(RemoveBlocks(data=data, blocks=blocks, checkpoint=checkpoint))
        for kind in _kinds(removal):
            layers: Any = removal.layers(kind)
            found.append(replace(self.prune, keep_ratio=None, layers=layers, kinds=[kind]))
        return found + self.ranks.passes(chains, data, checkpoint)

    def mock(self, assignment: Assignment) -> Graph:
        """A copy of these widths, ranks and blocks, not fitted: for measuring time."""
        blocks, removal, chains = self._gone(assignment)
        copy = self.graph.clone(share_weights=True)
        if blocks:
            RemoveBlocks(blocks=blocks, fit=False)(copy)
        for kind in _kinds(removal):
            layers: Any = removal.layers(kind)
            Prune(layers=layers, kinds=[kind], compensate="none")(copy)
        for factorize in self.ranks.passes(chains, None, None):
            factorize(copy)
        return copy

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


def _kinds(removal: RemovalPlan) -> list[Any]:
    return list(dict.fromkeys(group.kind for group in removal.groups if group.gone))


def _within_time(work: Work, spending: Spending, budget: Mapping[str, float]) -> Assignment:
    clock = _Clock(work, spending)
    terms = spending.costs.milliseconds(PartTimes(work.target, threads=work.options.measurement.threads))
    costs = {"ms": terms, **spending.counted(work, budget)}
    whole = Problem(spending.choices, costs, {})
    float_ms, now_ms = clock(whole.first)
    scale = now_ms / whole.cost("ms", whole.first)
    wanted = budget["ms"] if "ms" in budget else budget["latency"] * float_ms
    aim, best = wanted / scale, None
    for _ in range(ROUNDS):
        problem = Problem(spending.choices, costs, {"ms": aim, **spending.limits(work, budget)})
        found = solve(problem)
        float_ms, now_ms = clock(found)
        wanted = budget["ms"] if "ms" in budget else budget["latency"] * float_ms
        LOG.info("predicted %.4g ms, measured %.4g of %.4g", scale * problem.cost("ms", found), now_ms, wanted)
        holds = now_ms <= OVER * wanted
        if holds and (best is None or problem.damage(found) < best[0]):
            best = problem.damage(found), found, now_ms, float_ms
        if (holds and now_ms >= UNDER * wanted) or found == problem.first:
            break
        aim *= wanted / now_ms
    if best is None:
        problem = Problem(spending.choices, costs, {"ms": aim, **spending.limits(work, budget)})
        found = solve(problem)
        best = problem.damage(found), found, now_ms, float_ms
    _, found, now_ms, float_ms = best
    work.report.notes.append(
        f"a budget of {wanted:.3g} ms: widths, ranks and blocks were chosen that take {now_ms:.3g} ms with made-up weights, "
        f"{now_ms / float_ms:.0%} of float's {float_ms:.3g}"
    )
    return found


class _Clock:
    """Times a network of chosen widths in turn with the float original: (float ms, ms)."""

    def __init__(self, work: Work, spending: Spending) -> None:
        self.work, self.spending = work, spending
        self.original = work.floating(work.reference or work.target).artifact

    def __call__(self, assignment: Assignment) -> tuple[float, float]:
        artifacts = [self.original, self._lowered(self.spending.mock(assignment))]
        example = self.work.original.example
        calls = {}
        for number, artifact in enumerate(artifacts):
            artifact.set_threads(self.work.options.measurement.threads)
            calls[str(number)] = lambda a=artifact: a.milliseconds(*example.args, **example.kwargs)
        taken = cost.timings(calls, clocked=True)
        return taken.median("0"), taken.median("1")

    def _lowered(self, graph: Graph) -> Artifact:
        target, backend = self.work.target, self.work.backend
        run(timed(target, synthetic(graph)), graph, verify=False)
        return backend.lower(backend.deploy(graph, target), target)
