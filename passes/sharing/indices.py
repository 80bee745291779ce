"""Which of the shared values each weight of a layer has, chosen on data: the least-squares weight for what is wanted of the
layer, rounded to the table under the quadratic of its inputs, codes of many bits at a price (`graphopt.fitting.priced`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import from_matrix, weight_matrix
from graphopt.analysis.moments import Moments
from graphopt.execution.reference import set_compensated
from graphopt.fitting.fit import Found, Parametrization
from graphopt.fitting.least_squares import gather, least_squares
from graphopt.fitting.priced import SLOPE, Table, choose
from graphopt.fitting.samples import Samples
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

RIDGE = 1e-2  # of the mean second moment
SHARES = (1.0, 0.0)  # of the price, the second where the first is no gain


@dataclass(eq=False, kw_only=True)
class Indices(Parametrization):
    """The shared values of a layer's weights, and its bias.

    Attributes:
        layer: of the changed graph; its weight is rounded to a table.
        step: the distance between neighbouring values; 0: bits cost nothing.
    """

    makes_up: ClassVar[bool] = True

    layer: Layer
    step: float

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        moments = Moments(self.layer, centred=self.layer.bias is not None)
        gather(self.layer, samples, moments.update)
        stored = graph.tensor(operand(self.layer.weight))
        matrix = weight_matrix(self.layer, stored)
        weight = matrix.reshape(self.layer.groups, -1, matrix.shape[1]).double()
        aim, metric = least_squares(weight, moments, RIDGE)
        table = Table(torch.unique(graph.tensor(operand(self.layer.weight, 1)).double()))
        held = weight == 0
        for share in SHARES[: 2 if self.step else 1]:
            codes = choose(aim, metric, table, share * SLOPE * self.step**2, held=held)
            rounded = table.weight(codes)
            lost = moments.mean_t - (rounded @ moments.mean_x[..., None])[..., 0]
            yield {"weight": from_matrix(self.layer, rounded.flatten(0, 1).float(), stored), "bias": lost.flatten()}

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {self.layer.weight: found["weight"]}

    def shift(self, graph: Graph, found: Found) -> Tensor | None:
        bias: Tensor = found["bias"]
        return None if self.layer.bias is None else bias - graph.tensor(self.layer.bias).double()

    def store(self, graph: Graph, found: Found) -> None:
        set_compensated(graph, self.layer.weight, 0, found["weight"].contiguous())
        if self.layer.bias is not None and graph.is_constant(self.layer.bias):
            position = self.layer.node.args.index(self.layer.bias)
            set_compensated(graph, self.layer.node, position, found["bias"].to(graph.tensor(self.layer.bias).dtype))
