"""Errors of a residual stream, which the layer that adds to it can make up for.

With y what the layer gave in the original, z the stream it was added to, and z' that stream in the changed network, y + (z - z')
is wanted of the layer. Behind a batch norm a difference is divided by the norm's scale, channel by channel.

Paper: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.fitting.region import Region
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm
from graphopt.ir.ops import family
from graphopt.ir.quantizers import is_quantizer

FAINT = 1e-2  # of the median scale of a batch norm: channels that weak do not make up for a stream


@dataclass(frozen=True)
class Join:
    """The sum that a layer's result goes into. Quantizers on the way are gone past.

    Attributes:
        other: what it is added to.
        norm: the batch norm between layer and sum, if any.
    """

    other: Node
    norm: BatchNorm | None

    @classmethod
    def behind(cls, node: Node) -> Join | None:
        """The sum behind a call, with nothing between but a batch norm and calls that change nothing."""
        norm = None
        while len(node.users) == 1:
            reader = next(iter(node.users))
            if family(reader) == "add" and len(reader.all_input_nodes) == 2:
                other = next(n for n in reader.all_input_nodes if n is not node)
                same = other.op != "get_attr" and value(other).shape == value(node).shape
                return cls(other, norm) if same else None
            found = BatchNorm.of(reader)
            if family(reader) != "identity" and not is_quantizer(reader) and (found is None or norm is not None):
                return None
            norm, node = found or norm, reader
        return None


class Stream(NamedTuple):
    """A residual stream in both graphs.

    Attributes:
        theirs, ours: its value in the original and in the changed graph.
        factor: what a difference of the streams counts in front of the batch norm, [channels]; None without one.
    """

    theirs: Node
    ours: Node
    factor: Tensor | None

    @classmethod
    def behind(
        cls, graph: Graph, region: Region, source: Region, original: Callable[[Node], Node | None]
    ) -> Stream | None:
        """The stream that a region's result is added to, if it is known before the region is computed.

        Args:
            graph: the changed one.
            source: the same region in the original.
            original: the value of the original that one of the changed graph stands for.
        """
        ours, theirs = Join.behind(region.output), Join.behind(source.output)
        if ours is None or theirs is None or original(ours.other) is not theirs.other:
            return None
        if not ours.other < region.first or not theirs.other < source.first:
            return None  # what is computed later makes up for what is computed earlier
        return cls(theirs.other, ours.other, None if ours.norm is None else _inverse(graph, ours.norm))


def _inverse(graph: Graph, norm: BatchNorm) -> Tensor:
    """One over the scale of a batch norm, zero where that is faint: [channels]."""
    scale = torch.rsqrt(graph.tensor(norm.var) + norm.eps)
    if norm.weight is not None:
        scale = scale * graph.tensor(norm.weight)
    strong = scale.abs() > FAINT * scale.abs().median()
    return torch.where(strong, 1 / torch.where(strong, scale, torch.ones_like(scale)), torch.zeros_like(scale))
