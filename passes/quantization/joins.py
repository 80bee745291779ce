"""Joins of values of very different size, which one grid cannot hold: boxes in pixels beside scores of 0 to 1.

On the grid of the join, a part x keeps

    SQNR = 10 log10(E x^2 / E (x - q(x))^2)

A join that would cost a part more than it bears stays float, and every part keeps the grid it has. That helps where nothing
behind the join is integer; an integer layer would put all parts on one grid anyway, so for those nothing is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import Histogram, observe
from graphopt.formats import Format, fake_quantize
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.passes.quantization.grids import fit_uniform
from graphopt.passes.quantization.placement import QuantizationPlan

ENOUGH = 20.0  # dB that a part has to keep on a common grid
BORNE = 10.0  # dB that a common grid may cost beside a grid of its own, where less is left


def last_joins(plan: QuantizationPlan) -> dict[Node, Format]:
    """The integer joins behind which nothing is integer, and the format of their grids."""
    units = set(plan.operators.values())
    found = {}
    for grid in plan.grids:
        joins = [end for end in grid.produced if family(plan.operators[end]) == "concat"]
        if isinstance(grid.format, Format):
            found.update({end: grid.format for end in joins if not _read_by(end, units, set(grid.moved))})
    return found


def _read_by(value: Node, units: set[Node], moves: set[Node]) -> bool:
    """Whether an integer operator reads a value, through moves or not."""
    return any(
        reader in units or ((reader in moves or family(reader) == "split") and _read_by(reader, units, moves))
        for reader in value.users
    )


def drowning(graph: Graph, joins: dict[Node, Format], data: Iterable[list[Tensor]]) -> dict[Node, str]:
    """The joins that have to stay float, and why: which part keeps how little."""
    parts = {join: [node for node in join.all_input_nodes if not graph.is_constant(node)] for join in joins}
    seen = {node: Histogram() for join in joins for node in (join, *parts[join])}
    observe(graph, seen, data)
    found = {}
    for join, format in joins.items():
        common = (seen[join].low, seen[join].high)
        kept = {part: sqnr(seen[part], format, common) for part in parts[join]}
        own = {part: sqnr(seen[part], format, (seen[part].low, seen[part].high)) for part in parts[join]}
        worst = min(kept, key=lambda part: kept[part])
        if kept[worst] < ENOUGH and own[worst] - kept[worst] > BORNE:
            found[join] = (
                f"its parts differ in size, and {graph.site(worst)!r} would keep {kept[worst]:.1f} dB on one grid with the "
                f"others, in place of {own[worst]:.1f} dB"
            )
    return found


def sqnr(part: Histogram, format: Format, ends: tuple[float, float]) -> float:
    """What a value of this distribution keeps on the grid that covers a range, in dB."""
    scale, zero_point = fit_uniform(format, *ends).parameters
    used = part.counts > 0
    x, counts = part.centers[used], part.counts[used]
    rounded = fake_quantize(x, scale.double(), zero_point, format.quant_min, format.quant_max, -1)
    noise = (rounded - x).square() @ counts
    if part.width > float(scale):  # bins that hide the rounding inside them
        noise = torch.maximum(noise, counts.sum() * scale.double().square() / 12)
    power = float(x.square() @ counts)
    return 10 * math.log10(power / max(float(noise), 1e-30 * power)) if power else math.inf
