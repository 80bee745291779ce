"""What an assignment of bits costs, and how much it may.

    bits per weight    sum n b / sum n                 over what is not pinned; n: weights of a layer, b: their bits
    bytes              sum n b / 8                     of all weights
    bit operations     sum m b a                       m: multiply-accumulates, a: bits of the values the layer reads
    ms                 t + sum d                       t: with every layer in integer, d: what the layer costs more in float

All are sums over decisions and, for bit operations, over pairs of them: that of a layer's weights and that of what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.space import Bits, Space, stored

FLOAT = 32
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """The cost of assignments, and the most they may cost.

    Attributes:
        unit: of the cost.
        single: of every decision, the cost of each of its choices.
        joint: of pairs of decisions, the cost of each pair of their choices.
        constant: what is spent in any case.
    """

    unit: str
    single: Sequence[Numbers]
    joint: Mapping[tuple[int, int], Numbers] = field(default_factory=dict)
    constant: float = 0.0
    budget: float = 0.0

    def __call__(self, assignment: Sequence[int]) -> float:
        total = self.constant + sum(float(cost[index]) for cost, index in zip(self.single, assignment, strict=True))
        return total + sum(float(cost[assignment[i], assignment[j]]) for (i, j), cost in self.joint.items())

    def meets(self, assignment: Sequence[int]) -> bool:
        return self(assignment) <= self.budget * (1 + 1e-9)

    def within(self, budget: float) -> Cost:
        return replace(self, budget=budget)


@dataclass(frozen=True)
class Candidate:
    """An assignment to compare with others, by what found it."""

    name: str
    assignment: tuple[int, ...]
    cost: float


def average_bits(space: Space, budget: float) -> Cost:
    counts = [stored(d) if d.kind == "weights" and not d.pinned else 0 for d in space.decisions]
    total = max(1, sum(counts))
    return Cost("bits per weight", each(space, [n / total for n in counts]), budget=budget)


def size(space: Space, budget: float) -> Cost:
    counts = [stored(d) if d.kind == "weights" else 0 for d in space.decisions]
    layers = [layer for node in space.graph.calls() if (layer := Layer.of(node))]
    floats = {layer.weight for layer in layers if space.graph.site(layer.node) in space.floats}
    constant = sum(math.prod(value(weight).shape) for weight in floats) * FLOAT / 8
    return Cost("bytes", each(space, [n / 8 for n in counts]), constant=constant, budget=budget)


def bit_operations(space: Space, budget: float | tuple[int, int]) -> Cost:
    """`budget`: at most 1: the share of what the target's own formats cost; or the number; or that of uniform bits (w, a)."""
    work = measure.layer_macs(space.graph)
    single = each(space, [0.0] * len(space.decisions))
    joint: dict[tuple[int, int], Numbers] = {}
    formats, own = space.target.formats, 0.0
    for number, decision in enumerate(space.decisions):
        if decision.kind == "activations":
            continue
        bits = np.array([FLOAT if b is None else b for b in decision.choices], dtype=np.float64)
        for node in decision.nodes:
            read = space.reads[node]
            own += work[node] * formats.weights.bits * formats.activations.bits
            if read is None:
                single[number] += work[node] * bits * formats.activations.bits
            else:
                others = np.array(space.decisions[read].choices, dtype=np.float64)
                pair = work[node] * np.outer(bits, others)
                joint[number, read] = joint.get((number, read), 0.0) + pair
    cost = Cost("bit operations", single, joint)
    if isinstance(budget, tuple):
        return cost.within(cost(space.assignment(*budget)))
    return cost.within(budget * own if budget <= 1 else budget)


def lowered(assignment: Sequence[int], cost: Cost) -> tuple[int, ...]:
    """Fewer bits for one decision after another, until the budget is met or nothing gets cheaper."""
    found, cheaper = list(assignment), True
    while cheaper and not cost.meets(found):
        cheaper = False
        for number, choices in enumerate(cost.single):
            lower = [*found[:number], found[number] + 1, *found[number + 1 :]]
            if lower[number] < len(choices) and not cost.meets(found) and cost(lower) < cost(found):
                found, cheaper = lower, True
    return tuple(found)


def cheapest(cost: Cost) -> tuple[int, ...]:
    """The assignment to take where the budget cannot be met."""
    return lowered([0] * len(cost.single), cost)


def each(space: Space, factors: Sequence[float]) -> list[Numbers]:
    """Of every decision a number times the bits of each choice."""

    def bits(choice: Bits) -> float:
        return float(FLOAT if choice is None else choice)

    pairs = zip(space.decisions, factors, strict=True)
    return [factor * np.array([bits(choice) for choice in decision.choices]) for decision, factor in pairs]
