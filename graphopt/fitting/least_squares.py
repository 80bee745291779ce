"""Weight and bias of a layer, fitted by least squares to what is wanted of it.

    W', b' = argmin  sum | W' x + b' - y |^2  +  r |W' - W|^2      x: the layer's inputs [d], y: wanted outputs [out]

The less data, the stronger the ridge r that does best on samples held out. Only the moments of x and y are needed
(`graphopt.analysis.moments`).

Papers: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.2; Luo et al. 2017, "ThiNet".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import from_matrix, weight_matrix, with_samples
from graphopt.analysis.moments import Moments
from graphopt.fitting.fit import Found, Parametrization
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer

RIDGE = 1e-3  # of the mean second moment
RIDGES = (RIDGE, 1e-2, 1e-1, 1.0, 10.0, 1e3)  # tried in this order; the last leaves little but the bias to be fitted


@dataclass(eq=False, kw_only=True)
class LayerWeights(Parametrization):
    """Weight and bias of one layer, free to take any value. `layer`: of the changed graph."""

    makes_up: ClassVar[bool] = True

    layer: Layer

    @classmethod
    def all_of(
        cls,
        graph: Graph,
        sources: Mapping[str, Node],
        kept: Mapping[str, Tensor] | None = None,
        only: Collection[str] | None = None,
    ) -> list[LayerWeights]:
        """One for each layer that can be fitted alone, in execution order: those with a constant weight of their own and a bias
        that is constant or missing.

        Args:
            graph: the changed one.
            sources: the calls of the original by name; layers have the names they had there.
            kept: name of a layer's call -> the output channels it still has, where it lost some.
            only: names of the calls to fit; None: all.
        """
        found = []
        for node in graph.calls():
            layer, source = Layer.of(node), Layer.of(sources.get(node.name))
            if layer and source and _fits(graph, layer) and (only is None or node.name in only):
                found.append(cls.of_layer(layer, source, kept=(kept or {}).get(node.name), layer=layer))
        return found

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        moments = self.moments(graph, samples)
        old = graph.tensor(self.layer.weight)
        matrix = weight_matrix(self.layer, old)
        grouped = matrix.reshape(self.layer.groups, -1, matrix.shape[1])
        for ridge in RIDGES:
            weight, _ = least_squares(grouped, moments, ridge)
            bias = moments.mean_t - (weight @ moments.mean_x[..., None])[..., 0]
            yield {"weight": from_matrix(self.layer, weight.flatten(0, 1).to(old.dtype), old), "bias": bias.flatten()}

    def moments(self, graph: Graph, samples: Samples) -> Moments:
        """Of what the layer reads, and of what is wanted of it."""
        found = Moments(self.layer)
        gather(self.layer, samples, found.update)
        return found

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {self.layer.weight: found["weight"]}

    def shift(self, graph: Graph, found: Found) -> Tensor:
        bias: Tensor = found["bias"]
        return bias if self.layer.bias is None else bias - graph.tensor(self.layer.bias).double()

    def store(self, graph: Graph, found: Found) -> None:
        shift = self.shift(graph, found)
        graph.put_constant(self.layer.weight, found["weight"])
        shift_output(graph, self.layer, shift)


def gather(layer: Layer, samples: Samples, *update: Callable[[Tensor, Tensor], object]) -> None:
    """Call functions with what a layer is fitted on, batch by batch: its inputs, and the wanted [samples, positions, out]."""
    for part in samples.batches():
        for function in update:
            function(part.inputs[0], outputs(layer, part.wanted))


def outputs(layer: Layer, y: Tensor) -> Tensor:
    """A layer's result as [samples, positions, out]."""
    if layer.kind == "linear":
        return y.reshape(y.shape[0] if y.dim() > 1 else 1, -1, y.shape[-1])
    return with_samples(layer, y).flatten(2).transpose(1, 2)


def least_squares(weight: Tensor, moments: Moments, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Ridge regression around a weight [g, out, d]: the fitted weight, and the metric that its error is measured in, [g, d, d];
    float64. `ridge`: a share of the mean second moment."""
    weight, metric = weight.double(), metric_of(moments, ridge)
    lost = moments.xt - moments.xx @ weight.transpose(1, 2)
    return weight + torch.linalg.solve(metric, lost).transpose(1, 2), metric


def metric_of(moments: Moments, ridge: float = RIDGE) -> Tensor:
    """Second moments of a layer's inputs with a ridge, which makes every direction count: [g, d, d]."""
    xx = moments.xx
    size = xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return xx + ridge * size[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype)


def shift_output(graph: Graph, layer: Layer, shift: Tensor) -> None:
    """Add a vector [out] to what a layer gives: to its constant bias, to the batch norm that alone reads it, or as a new bias."""
    shift, readers = shift.to(graph.tensor(layer.weight).dtype), list(layer.node.users)
    norm = BatchNorm.of(readers[0]) if len(readers) == 1 else None
    if layer.bias is not None:
        graph.set_bias(layer.node, graph.tensor(layer.bias) + shift)
    elif norm is not None and len(norm.mean.users) == 1:
        graph.put_constant(norm.mean, graph.tensor(norm.mean) - shift)
    else:
        graph.set_bias(layer.node, shift)


def _fits(graph: Graph, layer: Layer) -> bool:
    own = graph.is_constant(layer.weight) and len(layer.weight.users) == 1
    return own and (layer.bias is None or graph.is_constant(layer.bias))
