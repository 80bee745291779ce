"""Joins of values of very different size, which one grid cannot hold: boxes in pixels beside scores of 0 to 1.

On the grid of the join, a part x keeps

    SQNR = 10 log10(E x^2 / E (x - q(x))^2)

`balance.py` first brings parts to one size where the layers around them take that exactly. Of what is left,

    joins that nothing in integer reads    stay float where they would cost a part more than it bears, and every part keeps the
                                           grid that it has
    joins that integer layers read         stay float, and so do those of the layers whose answers, computed from the parts on
                                           one grid and from the parts on grids of their own, show that they cannot bear it

A join is a concatenation, a stack, or a border of another constant than zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from graphopt.execution.executor import Executor
from graphopt.execution.observers import Histogram, observe
from graphopt.formats import Format, fake_quantize
from graphopt.ir.batches import count
from graphopt.ir.calls import argument, is_float
from graphopt.ir.cost import sqnr as sqnr_of
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family, info
from graphopt.passes.quantization.grids import fit_uniform
from graphopt.passes.quantization.placement import QuantizationPlan

ENOUGH = 20.0  # dB that a part has to keep on a common grid
BORNE = 10.0  # dB that a common grid may cost beside a grid of its own, where less is left
SAMPLES = 64  # that sizes of parts are seen on
PADS = (aten.constant_pad_nd.default, aten.pad.default)


@dataclass(frozen=True)
class Join:
    """A call that puts values beside each other.

    Attributes:
        parts: the values, without constants. format: of the grid that would hold them all.
        readers: integer layers that read it, through operators of one value or not.
        between: those operators.
    """

    node: Node
    parts: tuple[Node, ...]
    format: Format
    readers: tuple[Node, ...]
    between: tuple[Node, ...]


def joins(graph: Graph, plan: QuantizationPlan) -> list[Join]:
    """The joins on a uniform grid: those that are integer, and those that integer layers read."""
    format_of = {value: grid.format for grid in plan.grids for value in (*grid.produced, *grid.moved)}
    format_of |= {value: grid.format for grid in plan.grids for value, _ in grid.entered}
    ends = {operator: end for end, operator in plan.operators.items()}
    found = []
    for node in graph.calls():
        if not _is_join(node):
            continue
        readers, between = _behind(node, plan)
        end = ends.get(node, node)
        format = format_of.get(end) or next((format_of[v] for v in between if v in format_of), None)
        if isinstance(format, Format) and (readers or (end in format_of and not _is_read(end, plan))):
            parts = tuple(dict.fromkeys(n for n in node.all_input_nodes if is_float(n) and not graph.is_constant(n)))
            found.append(Join(node, parts, format, readers, between))
    return found


def _is_join(node: Node) -> bool:
    if not is_float(node):
        return False
    bordered = node.target in PADS and argument(node, "value") not in (None, 0) and not info(node).selects
    return family(node) in ("concat", "stack") or bordered


def _behind(join: Node, plan: QuantizationPlan) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The integer layers that read a call, and the operators of one value between: moves, and what is computed in integer."""
    inside = {*plan.operators, *plan.operators.values(), *(v for grid in plan.grids for v in grid.moved)}
    readers: dict[Node, None] = {}
    between: dict[Node, None] = {}
    waiting = list(join.users)
    while waiting:
        node = waiting.pop(0)
        if node in plan.layers:
            readers[node] = None
        elif node.op == "call_function" and node not in between and Layer.of(node) is None and not _is_join(node):
            values = [n for n in node.all_input_nodes if is_float(n) or family(n) == "split"]
            if len(values) == 1 and (node in inside or info(node).selects or family(node) == "split"):
                between[node] = None
                waiting += node.users
    return tuple(readers), tuple(between)


def _is_read(value: Node, plan: QuantizationPlan) -> bool:
    """Whether an integer operator reads a value, through moves or not."""
    units, moves = set(plan.operators.values()), {v for grid in plan.grids for v in grid.moved}

    def read(value: Node) -> bool:
        return any(
            reader in units or ((reader in moves or family(reader) == "split") and read(reader))
            for reader in value.users
        )

    return read(value)


# ---- What has to stay float -----------------------------------------------------------------------------------------


def drowning(graph: Graph, found: list[Join], data: Iterable[list[Tensor]]) -> dict[Node, str]:
    """The calls that have to stay float, and why: which part would keep how little."""
    seen = {node: Histogram() for join in found for node in (join.node, *join.parts)}
    observe(graph, seen, some(graph, data))
    floating: dict[Node, str] = {}
    for join in found:
        if (worst := _worst(join, seen)) is None:
            continue
        part, kept, own = worst
        if not join.readers:
            floating[join.node] = (
                f"its parts differ in size, and {graph.site(part)!r} would keep {kept:.1f} dB on one grid with the "
                f"others, in place of {own:.1f} dB"
            )
            continue
        for layer, common, apart in _hurt(graph, join, seen, data):
            why = (
                f"it reads {graph.site(join.node)!r}, whose parts differ in size: with {graph.site(part)!r} on one grid with "
                f"the others its answer would have {common:.1f} dB, in place of {apart:.1f} dB"
            )
            floating[layer] = why
            floating |= dict.fromkeys(_between(join, layer), why)
    return floating


def _between(join: Join, layer: Node) -> Iterator[Node]:
    """What would round the join on the way to one of its readers."""
    between = set(join.between)
    node = layer.all_input_nodes[0]
    while node in between:
        yield node
        node = next(n for n in node.all_input_nodes if n in between or n is join.node)
    yield join.node


def _worst(join: Join, seen: dict[Node, Histogram]) -> tuple[Node, float, float] | None:
    """The part that keeps least on the common grid, what it keeps there, and on a grid of its own; None where all keep enough."""
    whole = seen[join.node]
    kept = {part: sqnr(seen[part], join.format, (whole.low, whole.high)) for part in join.parts}
    own = {part: sqnr(seen[part], join.format, (seen[part].low, seen[part].high)) for part in join.parts}
    short = [part for part in join.parts if kept[part] < ENOUGH and own[part] - kept[part] > BORNE]
    worst = min(short, key=lambda part: kept[part], default=None)
    return None if worst is None else (worst, kept[worst], own[worst])


def _hurt(
    graph: Graph, join: Join, seen: dict[Node, Histogram], data: Iterable[list[Tensor]]
) -> list[tuple[Node, float, float]]:
    """Layers behind a join that cannot bear one grid for it; the SQNR of their answers on one, and on one for each part."""
    target: Any = join.node.target
    grids = {node: _rounding(join.format, seen[node]) for node in (join.node, *join.parts)}

    def on_one_grid(*args: Any, **kwargs: Any) -> Tensor:
        return grids[join.node](target(*args, **kwargs))

    def on_their_own(*args: Any, **kwargs: Any) -> Any:
        given, nodes = pytree.tree_leaves(args), pytree.tree_leaves(join.node.args)
        rounded = [grids[n](g) if isinstance(n, Node) and n in grids else g for n, g in zip(nodes, given, strict=True)]
        return target(*pytree.tree_unflatten(rounded, pytree.tree_structure(args)), **kwargs)

    ways = (None, {join.node: on_one_grid}, {join.node: on_their_own})
    batches = list(some(graph, data))
    with torch.no_grad():
        answers = [[Executor(graph, overrides=way).run(join.readers, batch) for batch in batches] for way in ways]
    found = []
    for layer in join.readers:
        reference, common, apart = (torch.cat([values[layer].flatten() for values in way]) for way in answers)
        one, each = sqnr_of(reference, common), sqnr_of(reference, apart)
        if one < ENOUGH and each - one > BORNE:
            found.append((layer, one, each))
    return found


def _rounding(format: Format, seen: Histogram) -> Callable[[Tensor], Tensor]:
    scale, zero_point = fit_uniform(format, seen.low, seen.high).parameters
    return lambda x: fake_quantize(x, scale, zero_point, format.quant_min, format.quant_max, -1)


def some(graph: Graph, data: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The first batches, as many samples as sizes are seen on."""
    seen = 0
    for batch in data:
        yield batch
        seen += count(graph, batch)
        if seen >= SAMPLES:
            return


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
