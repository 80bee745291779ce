"""What a network costs, as terms: each a function of the widths, ranks and blocks that it depends on.

A chain at other widths than those it was measured at takes the same share of what the layer takes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch.fx.node import Node

from graphopt.analysis.channels import cost as counts
from graphopt.analysis.channels.cost import Kept, Lengths
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.correction import PartTerm
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.formats import LayerFormats
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.timed_parts import TimedPart
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.part_times import PartTimes
from graphopt.evaluation.parts import parts
from graphopt.evaluation.resized import Alone, Resizing
from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.searching import Assignment, Term

TOO_MUCH = 1e5  # times its cost: what makes a combination that there is not too dear to be chosen
VECTOR_BYTES = 4.0  # of each element of a bias or a scale
Factor = Callable[[int, int], float]  # (number of a choice of ranks, option) -> share of the cost that is left
InFormat = Callable[[int, int, Assignment], float]  # (number of a choice of formats, option, widths) -> times its cost


class Costs:
    """Terms over the choices [*widths, *ranks, *depths, *formats] of a graph."""

    def __init__(
        self, graph: Graph, trace: Trace, widths: Widths, ranks: Ranks, depths: Depths, formats: LayerFormats
    ) -> None:
        self.graph, self.trace, self.widths, self.ranks, self.depths = graph, trace, widths, ranks, depths
        self.formats, self.format_of = formats, formats.numbers(graph)
        self.lengths = Lengths(trace, widths.plan.groups)
        self.rank_of = {node: n for n in range(len(ranks.choices)) for node in ranks.calls(n)}

    def macs(self) -> list[Term]:
        """Multiply-accumulates of one sample."""
        length = self.lengths
        return [
            self.product(node, [length(*factor) for factor in factors], left=self.macs_left)
            for node in self.graph.calls()
            for factors in measure.products(node)
        ]

    def weights(self, bytes_each: float) -> list[Term]:
        """Bytes of the weights, each in the bits of its codes; vectors, such as biases, at four each."""
        names = {name for name, _ in self.graph.named_parameters()}
        found = []

        def stored(number: int, option: int, _: Assignment) -> float:
            return self.formats.bits(number, option) / 8 / bytes_each

        for node in self.graph.nodes:
            if node.op == "get_attr" and str(node.target) in names:
                dims = value(node).dim()
                each = bytes_each if dims > 1 else VECTOR_BYTES
                reader = next(iter(node.users), node)
                lengths = [self.lengths(node, d) for d in range(dims)]
                matrix = dims > 1
                found.append(
                    self.product(
                        reader, lengths, each, self.parameters_left if matrix else None, stored if matrix else None
                    )
                )
        return found

    def milliseconds(self, times: PartTimes, floats: PartTimes | None = None) -> list[PartTerm]:
        """Of every part on the runtime, measured by itself at some widths.

        Args:
            floats: what times in float the parts of layers that may be.
        """
        resizing = Resizing(self.graph, self.widths.plan.groups, self.trace)
        timed = [TimedPart(part, resizing, self.widths) for part in parts(self.graph)]
        chains = [self.ranks.by_themselves(number) for number in range(len(self.ranks.choices))]
        known = _known(
            times, [*(alone for part in timed for alone in part.alone), *(a for each in chains for a in each)]
        )
        in_float = [part for part in timed if self._may_be_float(part.part.nodes[0])]
        known_float = _known(floats, [alone for part in in_float for alone in part.alone]) if floats else {}
        terms = []
        for part in timed:
            part.measured, part.in_float = part.at(known), part.at(known_float)
            whole = part.milliseconds((0,) * len(part.groups))

            def left(number: int, option: int, whole: float = whole) -> float:
                layer, *others = (known[alone.key] for alone in chains[number])
                return max(0.0, whole - layer + others[option - 1]) / whole if whole else 1.0

            def slower(number: int, option: int, widths: Assignment, part: TimedPart = part) -> float:
                return part.in_float_times(widths) if self.formats.is_float(number, option) else 1.0

            term = self._term(part.part.nodes, part.groups, part.milliseconds, left, slower if part.in_float else None)
            terms.append(PartTerm(term.scope, term.of, kernel_kind(part.part.nodes[0])))
        return terms

    def _may_be_float(self, node: Node) -> bool:
        number = self.format_of.get(node)
        options = [] if number is None else self.formats.choices[number].options
        return any(option.value is None for option in options)

    def product(
        self,
        node: Node,
        factors: Sequence[counts.Length],
        each: float = 1.0,
        left: Factor | None = None,
        in_format: InFormat | None = None,
    ) -> Term:
        """each * the product of lengths, for as long as the call is there."""
        groups = sorted({g for length in factors for block in length for g in block.groups})

        def of(options: Assignment) -> float:
            kept = self.widths.kept(dict(zip(groups, options, strict=True)))
            return each * prod(sum(block.left(kept) for block in length) for length in factors)

        return self._term((node,), tuple(groups), of, left, in_format)

    def macs_left(self, number: int, option: int) -> float:
        """The share of a layer's multiply-accumulates that a chain has."""
        return self.ranks.candidate(number, option).macs / self.ranks.weighed[number].macs

    def parameters_left(self, number: int, option: int) -> float:
        """The share of a layer's weights that a chain has."""
        return self.ranks.candidate(number, option).parameters / self.ranks.weighed[number].parameters

    def _shares(self, chain: int, kept: Kept) -> list[float]:
        """What is left of the dimensions of a layer that may become a chain."""
        weight = self.ranks.weighed[chain].site.layer.weight
        sizes = zip(self.lengths.sizes(weight, kept), value(weight).shape, strict=True)
        return [left / whole for left, whole in sizes]

    def _term(
        self,
        nodes: Sequence[Node],
        groups: tuple[int, ...],
        of: Callable[[Assignment], float],
        left: Factor | None,
        in_format: InFormat | None = None,
    ) -> Term:
        """A cost of calls by the widths around them: other for a chain or in another format, none where they are gone."""
        width, rank, depth = len(self.widths.choices), len(self.ranks.choices), len(self.depths.choices)
        chained = next((self.rank_of[n] for n in nodes if n in self.rank_of), None) if left else None
        formatted = self.format_of.get(nodes[0]) if in_format else None
        ranks = () if chained is None else (width + chained,)
        formats = () if formatted is None else (width + rank + depth + formatted,)
        blocks = tuple(width + rank + n for n, calls in enumerate(self.depths.calls) if nodes[0] in calls)

        def cost(options: Assignment) -> float:
            widths, rest = options[: len(groups)], options[len(groups) :]
            if any(rest[len(ranks) + len(formats) :]):
                return 0.0
            found = of(widths)
            if formatted is not None and in_format is not None:
                found *= in_format(formatted, rest[len(ranks)], widths)
            if chained is None or left is None or not rest[0]:
                return found
            kept = self.widths.kept(dict(zip(groups, widths, strict=True)))
            whole = of((0,) * len(groups))
            if not self.ranks.fits(chained, rest[0], self._shares(chained, kept)):
                return TOO_MUCH * whole
            slow = (
                max(1.0, of(widths) / whole) if whole else 1.0
            )  # the layer, by its kernels at such widths; not its chain
            return found / slow * left(chained, rest[0])

        return Term((*groups, *ranks, *formats, *blocks), cost)


def _known(times: PartTimes, wanted: Sequence[Alone]) -> dict[str, float]:
    return dict(zip((alone.key for alone in wanted), times(wanted), strict=True))


def kernel_kind(node: Node) -> str:
    """What is computed by the same kernels: the operator, the size of its filter, and whether it is grouped."""
    layer = Layer.of(node)
    if layer is None:
        return str(node.target)
    return f"{node.target} {tuple(value(layer.weight).shape[2:])} {layer.groups > 1}"
