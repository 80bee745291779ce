"""The layers that read the units of a group, and which columns of their weight matrices go with which unit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Array
from graphopt.analysis.im2col import weight_matrix
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer


class Reader(NamedTuple):
    """A layer whose input channels belong to a group.

    Attributes:
        layer: a convolution or linear layer without groups, with a constant weight that no other layer shares.
        units: for each column of its weight matrix [out, in * kernel] the unit it belongs to, or -1.
    """

    layer: Layer
    units: Array


def readers(graph: Graph, group: Group) -> list[Reader]:
    """The readers of a group in execution order; empty where its units are read by products only (queries and keys)."""
    found = []
    for member in group.members:
        if member.writes or len(member.node.users) != 1:
            continue
        layer = Layer.of(next(iter(member.node.users)))
        if layer is None or layer.groups != 1 or layer.weight is not member.node:
            continue
        if member.dim == (0 if layer.kind == "conv_transpose" else 1):
            kernel = weight_matrix(layer, graph.tensor(member.node)).shape[1] // len(member.units)
            found.append(Reader(layer, np.repeat(member.units, kernel)))
    order = {node: position for position, node in enumerate(graph.nodes)}
    return sorted(_merged(found), key=lambda reader: order[reader.layer.node])


def _merged(found: list[Reader]) -> list[Reader]:
    """One reader per layer: a layer whose columns carry units of the group twice over is met twice."""
    merged: dict[object, Reader] = {}
    for reader in found:
        known = merged.get(reader.layer.node)
        units = reader.units if known is None else np.where(known.units >= 0, known.units, reader.units)
        merged[reader.layer.node] = Reader(reader.layer, units)
    return list(merged.values())
