"""Choose the bits of every layer under a budget, and quantize accordingly; takes the place of `Quantize`.

    MixedPrecision(target, data, average_bits=3)                            of the weights that are stored
    MixedPrecision(target, data, max_bit_operations=(4, 4), activations=(2, 3, 4, 5, 6, 8))   no more than all in 4 bits
    MixedPrecision(target, data, max_latency_ms=3.0, choices=(8, None), timer=timer)

1. Every choice of every layer is rounded once (`roundings.py`), and its effect on the output is measured or estimated with all
   else in float (`sensitivity.py`, `hessian.py`).
2. An integer linear programme finds the assignment of least summed sensitivity that meets the budget (`ilp.py`), or an agent
   learns one from the divergence of whole networks (`agent.py`).
3. What was found is compared with every uniform allocation within the budget, rounded alike, on samples that neither
   sensitivities nor rewards were measured on, and the best is taken: the result is not worse than uniform bits there.

`LearnRounding` behind it takes most of the errors out, as behind `Quantize`; step 1 rounds as it does. Choices are those of
`Formats.weight_bits` and `activation_bits`: on CPUs fewer than 8 bits are stored in 8, so that they save no time there, and files
only where codes are packed or compressed.

Needs:  batch norm folded, as `Quantize`; data that can be gone through several times.
Papers: Wang et al. 2019, "HAQ"; Dong et al. 2019, "HAWQ"; Li et al. 2021, "BRECQ", section 3.4; Hubara et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from graphopt.execution.observers import Range
from graphopt.formats import Format
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, Shortfall, Timer, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.quantization.mixed import ilp
from graphopt.passes.quantization.mixed.agent import search
from graphopt.passes.quantization.mixed.checks import Sensitivity, Solver, check
from graphopt.passes.quantization.mixed.cost import (
    Candidate,
    Cost,
    Numbers,
    average_bits,
    bit_operations,
    cheapest,
    size,
)
from graphopt.passes.quantization.mixed.hessian import estimated
from graphopt.passes.quantization.mixed.latency import latency, timed
from graphopt.passes.quantization.mixed.plan import MixedPlan, rows
from graphopt.passes.quantization.mixed.roundings import Roundings
from graphopt.passes.quantization.mixed.samples import split
from graphopt.passes.quantization.mixed.sensitivity import Distance, Divergence, measured, rising
from graphopt.passes.quantization.mixed.space import Bits, Pin, Space
from graphopt.passes.quantization.mixed.trials import Network
from graphopt.passes.quantization.placement import SharedGrid
from graphopt.passes.quantization.quantize import Quantize, check_weights
from graphopt.targets import Target

B = TypeVar("B", int, Bits)
ROUNDS = 3  # of planning for a latency
FEW, MANY = 6, 8  # bits of weights


@dataclass(frozen=True)
class MixedPrecision:
    """Quantize with bits chosen under exactly one of four budgets.

    Attributes:
        target: decides which bits there are (`weight_bits`, `activation_bits`), placement, and formats but for their bits.
        data: batches of inputs, gone through several times (see `graphopt.data.Calibration`).
        average_bits: of the weights in layers that are not pinned.
        max_bytes: of all stored weights.
        max_bit_operations: multiply-accumulates x bits of weights x bits of activations. At most 1: the share of what the
            target's formats cost; (w, a): what uniform bits cost; else the number.
        max_latency_ms: milliseconds of a call on the graph's example, by `timer`.
        choices: bits of weights to choose from; None is float. Empty: 2 to 6, and the most up to 8 that the target has.
        activations: bits to choose from for what layers and other integer operators produce; empty: the target's.
            Inputs of the integer region, such as images, keep the target's.
        layers: name pattern (`fnmatch`, first match wins) -> bits of the weights, (bits of weights, of activations), or None
            for float; pinned, so that nothing is chosen there.
        sensitivity: `kl`, `sqnr` or `hessian`.
        solver: `ilp` or `agent`.
        timer: measures graphs on the runtime, such as `graphopt.compiler.latency.LatencyTimer(target, integer=False)`; they come
            quantized.
        estimator, weight_estimator: as in `Quantize`.
        episodes: of the agent.
        seed: of the agent, and of the signs that traces are estimated with.

    Raises:
        InputError: an option does not fit, or the target does not have such bits.
        InputError: a pattern matches nothing, nothing can be quantized, or `kl` finds no classes.
    """

    exact: ClassVar[bool] = False

    target: Target
    data: Iterable[list[Tensor]] = field(repr=False)
    average_bits: float | None = None
    max_bytes: float | None = None
    max_bit_operations: float | tuple[int, int] | None = None
    max_latency_ms: float | None = None
    choices: Sequence[Bits] = ()
    activations: Sequence[int] = ()
    layers: Mapping[str, Pin] = field(default_factory=dict)
    sensitivity: Sensitivity = "sqnr"
    solver: Solver = "ilp"
    timer: Timer | None = field(default=None, repr=False)
    estimator: str = "mse"
    weight_estimator: str = "minmax"
    episodes: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices) or _usual(self.target.formats.weight_bits))
        check(self)
        self.quantize({})  # checks the estimators

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            return []
        found = self.plan(graph)
        if all(format is None for format in found.formats.values()):  # within the budget, all may stay float
            return []
        kind = Change if found.met else Shortfall
        return [kind("(network)", found.summary()), *self.quantize(found.formats)(graph)]

    def quantize(self, formats: Mapping[str, object]) -> Quantize:
        """The pass that does what a plan's formats say."""
        return Quantize(self.target, self.data, self.estimator, self.weight_estimator, formats=formats)  # type: ignore[arg-type]

    # ---- Planning ---------------------------------------------------------------------------------------------------

    def plan(self, graph: Graph) -> MixedPlan:
        """What the pass would do to a graph, as a table; the graph stays as it is."""
        graph = graph.clone(share_weights=True)
        constant_weights(graph)
        space = Space.of(graph, self.target, _falling(self.choices), _falling(self.activations), self.layers)
        check_weights(graph, space.placement)
        cost = self._cost(space)
        network, samples = Network(graph), split(graph, self.data)
        distance: Distance = "sqnr" if self.sensitivity == "sqnr" else "kl"
        seen, unseen = (Divergence(network, part, distance) for part in (samples.seen, samples.held_out))
        for_rounding = islice(self.data, samples.rounding)
        rounded = Roundings(space, network, for_rounding, self._ranges(space), self.weight_estimator)
        sensitivities = self._sensitivities(space, seen, rounded)
        found, cost = self._solve(space, cost, seen, rounded, sensitivities)
        candidates = [Candidate(self.solver, found, cost(found)), *_uniforms(space, cost)]
        if self.timer is not None:
            candidates = timed(space, candidates, cost.budget, self.timer, self._simulate)
        divergence = {each.name: unseen(rounded(each.assignment)) for each in candidates}
        best = min(candidates, key=lambda each: divergence[each.name])
        return MixedPlan(
            rows(space, best.assignment, sensitivities),
            space.formats(best.assignment),
            best.name,
            divergence,
            distance,
            unseen.samples,
            best.cost,
            cost.budget,
            cost.unit,
            samples.notes,
        )

    def _cost(self, space: Space) -> Cost:
        if self.average_bits is not None:
            return average_bits(space, self.average_bits)
        if self.max_bytes is not None:
            return size(space, self.max_bytes)
        if self.max_bit_operations is not None:
            return bit_operations(space, self.max_bit_operations)
        assert self.max_latency_ms is not None
        assert self.timer is not None
        return latency(space, self.max_latency_ms, self.timer, self._simulate)

    def _simulate(self, space: Space, assignment: Sequence[int]) -> Graph:
        """A quantized copy with made-up ranges, which do not matter for time."""
        copy, formats = space.graph.clone(share_weights=True), space.formats(assignment)
        if any(found is not None for found in formats.values()):
            replace(self.quantize(formats), calibration=islice(self.data, 1), estimator="minmax")(copy)
            copy.refresh()
        return copy

    def _ranges(self, space: Space) -> Callable[[SharedGrid, Format], tuple[float, float]]:
        """Of a grid in some format, the range it covers; from one walk over the data, at the first call."""
        quantize, grids = self.quantize({}), space.placement.grids

        @cache
        def statistics() -> dict[int, Range]:
            return dict(zip(map(id, grids), quantize.watch(space.graph, space.placement), strict=True))

        return lambda grid, format: quantize.range_of(replace(grid, format=format), statistics()[id(grid)])

    def _sensitivities(self, space: Space, seen: Divergence, rounded: Roundings) -> list[Numbers]:
        if self.solver == "agent":
            return [np.zeros(len(d.choices)) for d in space.decisions]
        if self.sensitivity == "hessian":
            nearest = Roundings(space, seen.network, None, self._ranges(space), "mse")
            return rising(estimated(space, seen, nearest, self.seed))
        return rising(measured(seen, rounded))

    def _solve(
        self, space: Space, cost: Cost, seen: Divergence, rounded: Roundings, sensitivities: list[Numbers]
    ) -> tuple[tuple[int, ...], Cost]:
        """The assignment found; for a latency, planned again with what the whole network was measured to take."""
        for _ in range(ROUNDS):
            if self.solver == "agent":
                found = search(space, cost, lambda a: seen(rounded(a)), self.episodes, self.seed)
            else:
                found = ilp.solve(sensitivities, cost) or cheapest(cost)
            if self.timer is None or not cost.meets(found):
                break
            (time,) = self.timer([self._simulate(space, found)])
            cost = replace(cost, constant=cost.constant + time - cost(found))
            if cost.meets(found):
                break
        return found, cost


def _falling(choices: Iterable[B]) -> list[B]:
    """From the most precise to the least; None, float, is the most precise."""
    return sorted(set(choices), key=lambda bits: -np.inf if bits is None else -bits)


def _uniforms(space: Space, cost: Cost) -> list[Candidate]:
    """The uniform assignments within the budget that no other of them betters in every decision."""
    found = {name: a for name, a in space.uniforms().items() if cost.meets(a)}
    worse = {
        name
        for name, a in found.items()
        for b in found.values()
        if a != b and all(x <= y for x, y in zip(b, a, strict=True))
    }
    return [Candidate(name, a, cost(a)) for name, a in found.items() if name not in worse]


def _usual(known: Sequence[int]) -> tuple[int, ...]:
    """Bits that are worth a choice: each of the few, and one of the many."""
    return tuple(bits for bits in known if bits <= FEW or bits == max((b for b in known if b <= MANY), default=MANY))
