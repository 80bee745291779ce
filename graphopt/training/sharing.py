"""Training of shared values: each weight keeps the value it has, the values learn.

    W = (table * keep)[codes]       keep: 0 for zero's entry, 1 for all others

The gradient of an entry is the sum over the weights that have it; zero stays zero, so that pruned weights stay pruned. Before and
after, the graph holds the weight behind a quantizer that rounds to the table, with the same answers.

    report = graphopt.train(graph, data, compress=[SharedValues(), Response(model)], epochs=3)

Paper:  Han et al. 2016, "Deep Compression", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE_TABLE
from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import quantizer_of
from graphopt.training.compression import Compression
from graphopt.training.quantization.parameters import put_back
from graphopt.utils.errors import InputError


class SharedValues(Compression):
    """Train the values that weights share, of every quantizer that `ShareWeights` placed (one table to a weight).

    Raises:
        InputError: with `attach`, no weights share values.
    """

    def __init__(self) -> None:
        self.learned: list[_Learned] = []

    def attach(self, graph: Graph) -> list[Change]:
        found = [n for n in graph.calls(FAKE_QUANTIZE_TABLE) if graph.is_constant(operand(n)) and n.args[2] == -1]
        if not found:
            raise InputError("no weights share values; run ShareWeights first")
        self.learned = [_Learned.instead_of(graph, node) for node in found]
        graph.sweep()
        graph.refresh()
        return []

    def finish(self, graph: Graph) -> list[Change]:
        for each in self.learned:
            each.settle(graph)
        graph.sweep()
        graph.refresh()
        self.learned = []
        return []


@dataclass(frozen=True)
class _Learned:
    """One weight meanwhile: the call that gives it, the constants it reads, and their names before."""

    weight: Node
    table: Node
    keep: Node
    codes: Node
    names: tuple[str, str]

    @classmethod
    def instead_of(cls, graph: Graph, rounded: Node) -> _Learned:
        source, table = operand(rounded), operand(rounded, 1)
        quantizer, names = quantizer_of(graph, rounded), (str(source.target), str(table.target))
        codes, (entries,) = quantizer.quantize(graph.tensor(source)).long(), quantizer.parameters
        parts = {"learned": entries.clone(), "keep": (entries != 0).to(entries.dtype), "codes": codes.flatten()}
        learned, keep, places = (
            graph.add_constant(f"{names[1]}_{name}", part, before=rounded) for name, part in parts.items()
        )
        graph.make_parameter(learned)
        kept = graph.call(aten.mul.Tensor, learned, keep, before=rounded)
        flat = graph.call(aten.index_select.default, kept, 0, places, before=rounded)
        weight = graph.call(aten.view.default, flat, list(codes.shape), before=rounded)
        weight.meta["val"] = value(rounded)
        graph.replace(rounded, weight)
        return cls(weight, learned, keep, places, names)

    def settle(self, graph: Graph) -> None:
        """Put weight, table and quantizer back; entries are in order again."""
        entries, order = (graph.tensor(self.table) * graph.tensor(self.keep)).sort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        codes: Tensor = place[graph.tensor(self.codes)].reshape(value(self.weight).shape)
        weight = put_back(graph, self.names[0], entries[codes], before=self.weight, like=[self.table])
        table = put_back(graph, self.names[1], entries, before=self.weight)
        rounded = graph.call(FAKE_QUANTIZE_TABLE, weight, table, -1, before=self.weight)
        rounded.meta["val"] = value(self.weight)
        graph.replace(self.weight, rounded)
