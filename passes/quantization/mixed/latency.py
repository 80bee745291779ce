"""What layers cost in time, by leaving each alone in float: the integer kernels of CPUs take the same time whatever the bits.

    t(assignment) = t(all integer) + sum over layers in float of [t(that one in float) - t(all integer)]

Times of networks, since a layer in float also costs conversions around it. What is chosen is timed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Timer
from graphopt.passes.quantization.mixed.cost import Candidate, Cost
from graphopt.passes.quantization.mixed.space import Space

Simulate = Callable[[Space, Sequence[int]], Graph]  # a quantized copy of the graph with the formats of an assignment


def latency(space: Space, budget: float, timer: Timer, simulate: Simulate) -> Cost:
    """`budget`: milliseconds."""
    open_ = [number for number, d in enumerate(space.decisions) if d.choices[0] is None and len(d.choices) > 1]
    fast = tuple(int(number in open_) for number in range(len(space.decisions)))
    trials = [fast, *(tuple(0 if n == number else i for n, i in enumerate(fast)) for number in open_)]
    base, *times = timer([simulate(space, trial) for trial in trials])
    single = [np.zeros(len(decision.choices)) for decision in space.decisions]
    for number, time in zip(open_, times, strict=True):
        single[number][0] = time - base
    return Cost("ms", single, constant=base, budget=budget)


def timed(
    space: Space, candidates: Sequence[Candidate], budget: float, timer: Timer, simulate: Simulate
) -> list[Candidate]:
    """The candidates that are measured to meet the budget, each as a whole, or the fastest one."""
    times = timer([simulate(space, candidate.assignment) for candidate in candidates])
    found = [replace(candidate, cost=time) for candidate, time in zip(candidates, times, strict=True)]
    return [c for c in found if c.cost <= budget] or [min(found, key=lambda c: c.cost)]
