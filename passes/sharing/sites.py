"""Weights that can share values: those of layers, and tables of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE_TABLE, Quantizer
from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import constants

SMALLEST = 64  # weights: below, a table takes what sharing saves


@dataclass(frozen=True)
class Site:
    """A constant, what reads it, and the layer among these, where there is one; `name` is the constant's."""

    weight: Node
    readers: tuple[Node, ...]
    layer: Layer | None

    @property
    def name(self) -> str:
        return str(self.weight.target)

    def place(self, graph: Graph, quantizer: Quantizer) -> Node:
        """Let its readers read rounded values; the call that rounds."""
        first = min(self.readers)
        rounded = graph.call(
            FAKE_QUANTIZE_TABLE, self.weight, *constants(graph, quantizer, self.name, before=first), before=first
        )
        rounded.meta["val"] = value(self.weight)
        for reader in self.readers:
            reader.replace_input_with(self.weight, rounded)
        return rounded


def sites(graph: Graph) -> list[Site]:
    """In execution order. What something else reads too, or is no float32, is left out."""
    found: dict[Node, list[Node]] = {}
    for node in graph.calls():
        layer = Layer.of(node)
        weight = layer.weight if layer is not None else operand(node) if node.target is aten.embedding.default else None
        if weight is not None and graph.is_constant(weight):
            found.setdefault(weight, []).append(node)
    return [
        Site(weight, tuple(readers), Layer.of(readers[0]) if len(readers) == 1 else None)
        for weight, readers in found.items()
        if set(weight.users) == set(readers) and _fits(graph.tensor(weight))
    ]


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.numel() >= SMALLEST
