"""Choose each range by what the operators behind make of the rounded value, instead of by its own error.

For every grid the ranges of all estimators, and shrunk ones, compete on a few samples of the float network. Of each reader f of a
value x on the grid,

    cost(range) = sum over readers of  E |f(q(x)) - f(x)|^2 / E |f(x)|^2

a convolution weighs the channels of x by its weights, and errors of its inputs that cancel cost nothing. Readers run as they
stand in the graph, with activations fused into them; moves are looked through, as the value keeps its grid there.

One sample's readers run once for each range: memory is that of running the network on `PART` samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.observers import Histogram
from graphopt.formats import Format, fake_quantize, scale_and_zero_point
from graphopt.ir.batches import split
from graphopt.ir.calls import is_float
from graphopt.ir.graph import Graph
from graphopt.ir.ops import info
from graphopt.passes.quantization.placement import SharedGrid
from graphopt.passes.quantization.ranges import ESTIMATORS

PART = 8  # samples in flight
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1)  # of the widest range

Range = tuple[float, float]


def candidates(histogram: Histogram, format: Format) -> list[Range]:
    """The ranges that compete, the least squared error first (it is taken where nothing tells them apart)."""
    names = ["mse", *(name for name in ESTIMATORS if name != "mse")]
    found = [ESTIMATORS[name](histogram, format) for name in names]
    found += [(histogram.low * share, histogram.high * share) for share in SHARES]
    return list(dict.fromkeys(found))


def best_ranges(
    graph: Graph, options: Mapping[int, list[Range]], grids: list[SharedGrid], batches: list[list[Tensor]]
) -> dict[int, Range]:
    """Of each grid's options (by its position among the grids) the one whose readers change least."""
    trial = _Trial(graph, options, grids)
    for batch in batches:
        for part in split(graph, batch, PART):
            trial.run(part)
    return {index: found[int(trial.costs(index).argmin())] for index, found in options.items()}


class _Trial:
    """Runs the float graph, and each reader again for every range of what it reads."""

    def __init__(self, graph: Graph, options: Mapping[int, list[Range]], grids: list[SharedGrid]) -> None:
        self.graph, self.grids, self.options = graph, grids, options
        self.executor = Executor(graph)
        self.lost: dict[tuple[int, Node], Tensor] = {}  # grid and reader -> [ranges]
        self.power: dict[tuple[int, Node], float] = {}
        self.reads: dict[Node, dict[int, list[Node]]] = {}  # reader -> grid -> its values
        for index in options:
            grid = grids[index]
            moves = set(grid.moved)
            values = [(value, list(value.users)) for value in (*grid.produced, *grid.moved)] + grid.entered
            for value, readers in values:
                for reader in readers:
                    if reader not in moves:
                        self.reads.setdefault(reader, {}).setdefault(index, []).append(value)

    def costs(self, index: int) -> Tensor:
        total = torch.zeros(len(self.options[index]), dtype=torch.float64)
        for (grid, reader), lost in self.lost.items():
            if grid == index:
                total += lost / max(self.power[grid, reader], 1e-30)
        return total

    def run(self, batch: list[Tensor]) -> None:
        values = self.executor.inputs(batch)
        for node in chain(self.executor.walk(values, (), keep=self.graph.outputs), [self.graph.output]):
            for index, read in self.reads.get(node, {}).items():
                self.compare(node, index, read, values)

    def compare(self, reader: Node, index: int, read: list[Node], values: Mapping[Node, Any]) -> None:
        found = self.answer(reader, values)
        if not found:
            return
        key, format = (index, reader), self.grids[index].format
        assert isinstance(format, Format)
        lost = []
        for low, high in self.options[index]:
            scale, zero = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
            ends = (format.quant_min, format.quant_max, -1)
            rounded = {value: fake_quantize(values[value], scale, zero, *ends) for value in read}
            pairs = zip(self.answer(reader, {**values, **rounded}), found, strict=True)
            lost.append(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs))
        self.lost[key] = self.lost.get(key, torch.zeros(len(lost), dtype=torch.float64)) + torch.tensor(lost).double()
        self.power[key] = self.power.get(key, 0.0) + sum(float(b.double().square().sum()) for b in found)

    def answer(self, reader: Node, values: Mapping[Node, Any]) -> list[Tensor]:
        """What a reader gives behind its fused activations; the output gives what it returns."""
        if reader.op == "output":
            return [self.executor.read(node, values) for node in reader.all_input_nodes if is_float(node)]
        result = self.executor.call(reader, values)
        while len(reader.users) == 1 and info(behind := next(iter(reader.users))).fusable:
            ends = (self.graph.tensor(a) if isinstance(a, Node) else a for a in behind.args[1:])
            reader, result = behind, behind.target(result, *ends, **behind.kwargs)  # type: ignore[operator]
        return [t for t in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(t, Tensor)]
