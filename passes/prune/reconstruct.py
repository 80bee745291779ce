"""Re-fit the layers behind removed channels, so that they give what the original network gave.

Sequential and asymmetric: in execution order, each layer is fitted on the inputs it gets in the pruned network, layers before it
fitted already, to the outputs it gave in the original one.

    W', b' = argmin  sum | W' x + b' - y |^2  +  r |W' - W|^2      x: pruned inputs [d], y: original outputs [out]

Only the moments of x and y are kept (`graphopt.patches.Moments`), so memory does not grow with the data.

Papers: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.2; Luo et al. 2017, "ThiNet".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.frontier import Frontier, in_flight
from graphopt.graph import Graph
from graphopt.observe import values
from graphopt.ops import BatchNorm, Layer
from graphopt.patches import Moments, from_matrix, weight_matrix
from graphopt.progress import track

RIDGE = 1e-3  # of the mean second moment
BUDGET = 2**31  # bytes of values in flight at a layer, of both graphs; more is computed anew


def reconstruct(
    original: Graph,
    graph: Graph,
    kept: Mapping[str, Tensor],
    data: Iterable[list[Tensor]],
    only: Collection[str] | None = None,
) -> list[str]:
    """Fit layers of a pruned graph to the original, in place.

    Args:
        original: the graph before removal.
        graph: after it; calls have the names they had.
        kept: name of a layer's call -> the output channels it still has.
        data: batches; gone through once where the values in flight fit into memory (`BUDGET`), else once per layer.
        only: names of the calls to fit; None: all layers without groups.

    Returns:
        The names of the layers fitted.
    """
    before = {node.name: node for node in original.nodes}
    chosen = [layer for node in graph.calls() if (layer := Layer.of(node)) and fits(graph, layer)]
    chosen = [layer for layer in chosen if (only is None or layer.node.name in only) and layer.node.name in before]
    walk = _Walk(original, graph, data)
    for layer in track(chosen, "reconstructing"):
        moments = Moments(layer)
        for x, y in walk(layer, before[layer.node.name]):
            wanted = outputs(layer, y)
            moments.update(x, wanted[..., kept[layer.node.name]] if layer.node.name in kept else wanted)
        fit(graph, layer, moments)
    return [layer.node.name for layer in chosen]


class _Walk:
    """Gives, batch by batch, a layer's input in the pruned graph and its output in the original one."""

    def __init__(self, original: Graph, graph: Graph, data: Iterable[list[Tensor]]) -> None:
        self.original, self.graph, self.data = original, graph, data
        self.samples = sum(len(batch[0]) for batch in data)

    @cached_property
    def walks(self) -> tuple[Frontier, Frontier]:
        """Made when the first layer fits: until then the data are not held."""
        batches = list(self.data)
        return Frontier(self.original, batches), Frontier(self.graph, batches)

    def __call__(self, layer: Layer, source: Node) -> Iterator[tuple[Tensor, Tensor]]:
        if self.samples * (in_flight(self.original, source) + in_flight(self.graph, layer.node)) <= BUDGET:
            targets, pruned = self.walks
            inputs = pruned.before(layer.node, [layer.input])
            for (x,), y in zip(inputs, targets.results(source), strict=True):
                yield x, y
        else:
            for batch in self.data:
                found = values(self.graph, [layer.input], batch), values(self.original, [source], batch)
                yield found[0][layer.input], found[1][source]


def fits(graph: Graph, layer: Layer) -> bool:
    """Whether a layer can be fitted: no groups, and a constant weight of its own."""
    return layer.groups == 1 and graph.is_constant(layer.weight) and len(layer.weight.users) == 1


def outputs(layer: Layer, y: Tensor) -> Tensor:
    """A layer's result as [samples, positions, out]."""
    if layer.kind == "linear":
        return y.reshape(y.shape[0] if y.dim() > 1 else 1, -1, y.shape[-1])
    return y.flatten(2).transpose(1, 2)


def fit(graph: Graph, layer: Layer, moments: Moments) -> None:
    """Ridge regression around the present weight; the mean error goes into the bias."""
    old = graph.tensor(layer.weight)
    weight = weight_matrix(layer, old).double()
    xx = moments.xx
    ridge = RIDGE * xx.diagonal().mean().clamp(min=1e-12) * torch.eye(len(xx), dtype=xx.dtype)
    weight = weight + torch.linalg.solve(xx + ridge, moments.xt - xx @ weight.T).T
    graph.put_constant(layer.weight, from_matrix(layer, weight.to(old.dtype), old))
    wanted = moments.mean_t - weight @ moments.mean_x
    bias = layer.bias
    have = graph.tensor(bias).double() if graph.is_constant(bias) else torch.zeros_like(wanted)  # type: ignore[arg-type]
    shift_output(graph, layer, (wanted - have).to(old.dtype))


def shift_output(graph: Graph, layer: Layer, shift: Tensor) -> None:
    """Add a vector [out] to what a layer gives: into its bias, into the mean of the batch norm behind it, or as a new bias."""
    readers = list(layer.node.users)
    norm = BatchNorm.of(readers[0]) if len(readers) == 1 else None
    if isinstance(layer.bias, Node) and graph.is_constant(layer.bias) and len(layer.bias.users) == 1:
        graph.put_constant(layer.bias, graph.tensor(layer.bias) + shift)
    elif norm is not None and len(norm.node.args[3].users) == 1:  # type: ignore[union-attr]
        mean: Node = norm.node.args[3]  # type: ignore[assignment]
        graph.put_constant(mean, graph.tensor(mean) - shift)
    elif layer.bias is None:
        graph.set_bias(layer.node, shift)
