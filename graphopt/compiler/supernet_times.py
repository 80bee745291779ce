"""Milliseconds of the networks that a supernet holds, for a search within a limit of measured time.

    times = SupernetTimes("host")
    found = graphopt.supernets.search(graph, {"latency": 0.6}, evaluate=accuracy, data=images, times=times)

1. The graph falls into parts, what a runtime computes together; a part ends where a choice is made, too. Every part is timed by
   itself at all widths that it may have (`PartTimes`, which remembers), and counts where the options chosen compute it.
2. Some whole networks are extracted, lowered with made-up ranges and timed in turn with the largest: what they take more or less
   than the sum of their parts corrects it (`budget.correction`).

The largest network is that with the first options; `latency` is a share of its time.
"""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

from torch.fx.node import Node

from graphopt.analysis.channels.cost import Kept
from graphopt.analysis.choices import Costs, extract
from graphopt.analysis.choices.costs import names
from graphopt.artifacts.artifact import Artifact
from graphopt.compiler.budget.clock import Clock
from graphopt.compiler.budget.correction import Agreement, Correction, PartTerm, drawn
from graphopt.compiler.budget.costs import kernel_kind
from graphopt.compiler.made_up import lowered
from graphopt.compiler.part_times import PartTimes
from graphopt.evaluation.parts import Part, parts
from graphopt.evaluation.resized import Alone, Resizing
from graphopt.ir.choices import CHOOSE, one_hot
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment, Choice, Option, Term
from graphopt.targets import Target
from graphopt.utils.progress import progress

NETWORKS = 16  # whole ones that correct the parts
TRIES = 10  # draws for each: small supernets have few


class SupernetTimes:
    """Makes the cost `ms` of a supernet.

    Args:
        target: a name or a `Target` of this machine's architecture.
        networks: whole ones that are timed, the largest among them; 0: parts alone are believed.
        threads: of the runtime. seed: of which networks are timed.
        cache: where the times of parts are kept; see `PartTimes`.

    Attributes:
        agreement: how predicted and measured times of these networks agree, each predicted from the others; None of fewer
            than four, and before anything was timed.

    Raises:
        InputError: the target is of another architecture, so nothing can be timed here.
    """

    def __init__(
        self,
        target: str | Target = "host",
        *,
        networks: int = NETWORKS,
        threads: int = 1,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.times = PartTimes(target, threads=threads, cache=cache)
        self.networks, self.seed = networks, seed
        self.agreement: Agreement | None = None

    def __call__(self, graph: Graph) -> list[Term]:
        """Milliseconds, as terms over the choices of a graph."""
        costs = Costs(graph)
        choices = [
            Choice(name, live.kind, tuple(Option(label, 0.0) for label in live.labels))
            for name, live in zip(names(costs.choices), costs.choices, strict=True)
        ]
        correction = Correction(choices, _PartsOf(costs).terms(self.times))
        if self.networks < 1:
            return list(correction.parts)
        reference = self._artifact(graph, (0,) * len(choices))
        clock = Clock(reference, graph.example, self.times.threads)
        correction.see((0,) * len(choices), clock.reference_ms)
        with progress("timing whole networks", total=self.networks) as advance:
            for options in islice(drawn(choices, self.seed), TRIES * self.networks):
                if options not in correction.seen:
                    correction.see(options, clock(self._artifact(graph, options)))
                    advance()
                if len(correction.seen) >= self.networks:
                    break
        self.agreement = correction.agreement()
        return correction.terms()

    def _artifact(self, graph: Graph, options: Assignment) -> Artifact:
        return lowered(extract(graph, options), self.times.target)


class _PartsOf:
    """The parts of a supernet, and what they look like at each of their widths."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        groups = [group for group, *_ in costs.groups]
        self.resizing = Resizing(costs.graph, groups, costs.lengths.trace)
        self.parts = [piece for part in parts(costs.graph) for piece in pieces(part, costs.constant)]

    def terms(self, times: PartTimes) -> list[PartTerm]:
        grids = [self._grid(part) for part in self.parts]
        alone = [each for _, grid in grids for each in grid.values() if each is not None]
        known = dict(zip((each.key for each in alone), times(alone), strict=True))
        found = []
        for part, (widths, grid) in zip(self.parts, grids, strict=True):
            ms = {at: 0.0 if each is None else known[each.key] for at, each in grid.items()}
            found.append(self._term(part, widths, ms))
        return found

    def _grid(self, part: Part) -> tuple[tuple[int, ...], dict[Assignment, Alone | None]]:
        """The choices of width that a part depends on, and for their options the part by itself."""
        groups = self.resizing.groups_of(part)
        widths = tuple(sorted({self.costs.groups[group][1] for group in groups}))
        sizes = [range(len(self.costs.choices[choice])) for choice in widths]
        return widths, {
            at: self.resizing(part, self._kept(dict(zip(widths, at, strict=True)))) for at in product(*sizes)
        }

    def _kept(self, options: dict[int, int]) -> Kept:
        return [levels[options.get(choice, 0)].numpy() > 0 for _, choice, levels in self.costs.groups]

    def _term(self, part: Part, widths: tuple[int, ...], ms: dict[Assignment, float]) -> PartTerm:
        node, computed = part.nodes[0], self.costs.computed
        scope = tuple(sorted({*widths, *computed.scope(node)}))

        def of(options: Assignment) -> float:
            chosen = dict(zip(scope, options, strict=True))
            weights = [one_hot(chosen.get(n, 0), len(choice)) for n, choice in enumerate(self.costs.choices)]
            return ms[tuple(chosen[n] for n in widths)] * float(computed(node, weights))

        return PartTerm(scope, of, kernel_kind(node))


def pieces(part: Part, constant: set[Node]) -> list[Part]:
    """A part without what is computed of constants alone, cut where a choice is made."""
    depth: dict[Node, int] = {}
    for node in part.nodes:
        if node not in constant:
            before = max((depth[source] for source in node.all_input_nodes if source in depth), default=0)
            depth[node] = before + (node.target is CHOOSE)
    found: dict[int, list[Node]] = {}
    for node, number in depth.items():
        if node.target is not CHOOSE:
            found.setdefault(number, []).append(node)
    return [Part(part.name, tuple(nodes)) for nodes in found.values()]
