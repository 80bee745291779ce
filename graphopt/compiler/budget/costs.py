"""What a network costs, as terms: each a function of the widths, ranks and blocks that it depends on.

A chain at other widths than those it was measured at takes the same share of what the layer takes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from torch.fx.node import Node

from graphopt.analysis.channels import cost as counts
from graphopt.analysis.channels.cost import Kept, Lengths
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.correction import PartTerm
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.part_times import PartTimes
from graphopt.evaluation.parts import Part, parts
from graphopt.evaluation.resized import Alone, Resizing
from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.searching import Assignment, Term

GRID = {0: 1, 1: 5, 2: 5, 3: 3}  # by the groups of a part, widths of each at which it is timed; others are interpolated
TOO_MUCH = 1e5  # times its cost: what makes a combination that there is not too dear to be chosen
VECTOR_BYTES = 4.0  # of each element of a bias or a scale
Factor = Callable[[int, int], float]  # (number of a choice of ranks, option) -> share of the cost that is left


class Costs:
    """Terms over the choices [*widths, *ranks, *depths] of a graph."""

    def __init__(self, graph: Graph, trace: Trace, widths: Widths, ranks: Ranks, depths: Depths) -> None:
        self.graph, self.trace, self.widths, self.ranks, self.depths = graph, trace, widths, ranks, depths
        self.lengths = Lengths(trace, widths.plan.groups)
        self.rank_of = {node: n for n in range(len(ranks.choices)) for node in ranks.calls(n)}

    def macs(self) -> list[Term]:
        """Multiply-accumulates of one sample."""
        length = self.lengths

        def left(number: int, option: int) -> float:
            return self.ranks.candidate(number, option).macs / self.ranks.weighed[number].macs

        return [
            self._product(node, [length(*factor) for factor in factors], left=left)
            for node in self.graph.calls()
            for factors in measure.products(node)
        ]

    def weights(self, bytes_each: float) -> list[Term]:
        """Bytes of the weights; vectors, such as biases, at four each."""
        names = {name for name, _ in self.graph.named_parameters()}
        found = []

        def left(number: int, option: int) -> float:
            return self.ranks.candidate(number, option).parameters / self.ranks.weighed[number].parameters

        for node in self.graph.nodes:
            if node.op == "get_attr" and str(node.target) in names:
                dims = value(node).dim()
                each = bytes_each if dims > 1 else VECTOR_BYTES
                reader = next(iter(node.users), node)
                lengths = [self.lengths(node, d) for d in range(dims)]
                found.append(self._product(reader, lengths, each, left if dims > 1 else None))
        return found

    def milliseconds(self, times: PartTimes) -> list[PartTerm]:
        """Of every part on the runtime, measured by itself at some widths."""
        resizing = Resizing(self.graph, self.widths.plan.groups, self.trace)
        timed = [_Timed(part, resizing, self.widths) for part in parts(self.graph)]
        wanted = [alone for part in timed for alone in part.grid.values() if alone is not None]
        chains = [self.ranks.by_themselves(number) for number in range(len(self.ranks.choices))]
        wanted += [alone for each in chains for alone in each]
        known = dict(zip((alone.key for alone in wanted), times(wanted), strict=True))
        terms = []
        for part in timed:
            part.measured = {at: known[alone.key] for at, alone in part.grid.items() if alone is not None}
            whole = part.milliseconds((0,) * len(part.groups))

            def left(number: int, option: int, whole: float = whole) -> float:
                layer, *others = (known[alone.key] for alone in chains[number])
                return max(0.0, whole - layer + others[option - 1]) / whole if whole else 1.0

            term = self._term(part.part.nodes, part.groups, part.milliseconds, left)
            terms.append(PartTerm(term.scope, term.of, _kind(part.part.nodes[0])))
        return terms

    def _product(
        self, node: Node, factors: Sequence[counts.Length], each: float = 1.0, left: Factor | None = None
    ) -> Term:
        """each * the product of lengths, for as long as the call is there."""
        groups = sorted({g for length in factors for block in length for g in block.groups})

        def of(options: Assignment) -> float:
            kept = self.widths.kept(dict(zip(groups, options, strict=True)))
            return each * prod(sum(block.left(kept) for block in length) for length in factors)

        return self._term((node,), tuple(groups), of, left)

    def _shares(self, chain: int, kept: Kept) -> list[float]:
        """What is left of the dimensions of a layer that may become a chain."""
        weight = self.ranks.weighed[chain].site.layer.weight
        sizes = zip(self.lengths.sizes(weight, kept), value(weight).shape, strict=True)
        return [left / whole for left, whole in sizes]

    def _term(
        self, nodes: Sequence[Node], groups: tuple[int, ...], of: Callable[[Assignment], float], left: Factor | None
    ) -> Term:
        """A cost of calls by the widths around them: less where a layer among them is a chain, none where they are gone."""
        width, rank = len(self.widths.choices), len(self.ranks.choices)
        chained = next((self.rank_of[n] for n in nodes if n in self.rank_of), None) if left else None
        ranks = () if chained is None else (width + chained,)
        blocks = tuple(width + rank + n for n, calls in enumerate(self.depths.calls) if nodes[0] in calls)

        def cost(options: Assignment) -> float:
            widths, rest = options[: len(groups)], options[len(groups) :]
            if any(rest[len(ranks) :]):
                return 0.0
            if chained is None or left is None or not rest[0]:
                return of(widths)
            if not self.ranks.fits(
                chained, rest[0], self._shares(chained, self.widths.kept(dict(zip(groups, widths, strict=True))))
            ):
                return TOO_MUCH * of((0,) * len(groups))
            whole = of(
                (0,) * len(groups)
            )  # a chain does not take more because the layer has slower kernels at other widths
            return min(whole, of(widths)) * left(chained, rest[0])

        return Term((*groups, *ranks, *blocks), cost)


class _Timed:
    """One part: the widths at which it is timed, and its time at others."""

    def __init__(self, part: Part, resizing: Resizing, widths: Widths) -> None:
        self.part, self.widths = part, widths
        self.groups = resizing.groups_of(part)
        levels = GRID.get(len(self.groups), 2)
        self.options = [_spread(len(widths.choices[g].options), levels) for g in self.groups]
        self.grid: dict[Assignment, Alone | None] = {
            at: resizing(part, widths.kept(dict(zip(self.groups, at, strict=True)))) for at in product(*self.options)
        }
        self.measured: dict[Assignment, float] = {}

    def milliseconds(self, options: Assignment) -> float:
        """Between the widths that were timed, linear in each; nothing for parts that cannot be timed by themselves."""
        if len(self.measured) < len(self.grid):
            return 0.0
        dims = zip(self.options, options, self.groups, strict=True)
        around = [_around(grid, option, self._width(group)) for grid, option, group in dims]
        total = 0.0
        for corner in product(*around):
            total += prod(weight for _, weight in corner) * self.measured[tuple(option for option, _ in corner)]
        return total

    def _width(self, group: int) -> Callable[[int], float]:
        return lambda option: float(self.widths.choices[group].options[option].value)


def _kind(node: Node) -> str:
    """What is computed by the same kernels: the operator, the size of its filter, and whether it is grouped."""
    layer = Layer.of(node)
    if layer is None:
        return str(node.target)
    return f"{node.target} {tuple(value(layer.weight).shape[2:])} {layer.groups > 1}"


def _spread(count: int, levels: int) -> list[int]:
    """Up to so many options, the first and the last among them."""
    if count <= levels:
        return list(range(count))
    return sorted({round(i * (count - 1) / (levels - 1)) for i in range(levels)})


def _around(grid: Sequence[int], option: int, width: Callable[[int], float]) -> list[tuple[int, float]]:
    """The timed options next to one, with their shares."""
    if option in grid:
        return [(option, 1.0)]
    below = max(o for o in grid if o < option)
    above = min(o for o in grid if o > option)
    share = (width(option) - width(below)) / (width(above) - width(below))
    return [(below, 1 - share), (above, share)]
