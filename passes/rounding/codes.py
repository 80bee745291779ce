"""Codes of one layer in closed form: the least-squares weight for what is wanted of the layer, rounded under the quadratic of its
inputs (`graphopt.fitting.rounding`), digit by digit where that is asked for (`bit_split.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.moments import Moments
from graphopt.fitting import rounding
from graphopt.fitting.fit import Found, Parametrization
from graphopt.fitting.least_squares import gather, least_squares
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph
from graphopt.passes.rounding import bit_split
from graphopt.passes.rounding.weights import Rounded

RIDGE = 1e-2  # of the mean second moment: what the data say nothing about stays as it was


@dataclass(eq=False, kw_only=True)
class Codes(Parametrization):
    """Codes, scales and bias of a layer whose weight is rounded.

    Attributes:
        rounded: the layer.
        digits: whether codes are found digit by digit.
        scales: whether scales are fitted, too.
    """

    makes_up: ClassVar[bool] = True

    rounded: Rounded
    digits: bool
    scales: bool

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        """`aim` is the weight that was rounded, [g, out, d]."""
        rounded = self.rounded
        moments = Moments(rounded.layer, centred=rounded.bias is not None)
        gather(rounded.layer, samples, moments.update)
        weight = rounded.grouped(rounded.weight(graph))
        aim, metric = least_squares(weight, moments, RIDGE)
        way = bit_split.fit if self.digits else rounding.fit
        scales = self.scales and not rounded.scales_fixed(graph)
        codes, lattice = way(aim, metric, rounded.lattice(graph), scales=scales)
        lost = moments.mean_t - (lattice.weight(codes) @ moments.mean_x[..., None])[..., 0]
        yield {"codes": codes, "scale": lattice.scale, "bias": lost.flatten(), "aim": aim.float()}

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {self.rounded.quantizer: self.rounded.settled(graph, found["codes"], found["scale"])[0]}

    def shift(self, graph: Graph, found: Found) -> Tensor | None:
        bias: Tensor = found["bias"]
        return None if self.rounded.bias is None else bias - graph.tensor(self.rounded.bias[1]).double()

    def store(self, graph: Graph, found: Found) -> None:
        self.rounded.store(graph, found["codes"], found["scale"], found["bias"])
