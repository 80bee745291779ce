"""Fit layers of a changed graph so that they give what the original's gave.

Sequential and asymmetric: in execution order, each layer is fitted on the inputs it gets in the changed network, layers before it
fitted already, to the outputs it gave in the original one.

    W', b' = argmin  sum | W' x + b' - y |^2  +  r |W' - W|^2      x: changed inputs [d], y: original outputs [out]

A layer whose result is added to a residual stream also makes up for what the stream has lost before it: with z the stream in the
original, z' in the changed network, y + (z - z') takes the place of y.

Only the moments of x and y are kept (`graphopt.analysis.im2col.Moments`), so memory does not grow with the data.

Papers: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", sections 3.2 and 3.3 (residual
        streams); Luo et al. 2017, "ThiNet"; Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification
        and Detection", section 3.3 (asymmetric).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import Moments, from_matrix, weight_matrix
from graphopt.execution.executor import Executor
from graphopt.execution.streaming import Frontier, in_flight
from graphopt.ir.batches import count
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import family, operand, value
from graphopt.ir.quantizers import is_quantizer

RIDGE = 1e-3  # of the mean second moment
BUDGET = 2**31  # bytes of values in flight at a layer, of both graphs; more is computed anew
FAINT = 1e-2  # of the median scale of a batch norm: channels that weak do not make up for a stream


@dataclass(frozen=True)
class Join:
    """Where a layer's result is added to a stream. Quantizers on the way are gone past.

    Attributes:
        other: what it is added to.
        norm: the batch norm between layer and sum, if any.
    """

    other: Node
    norm: BatchNorm | None

    @classmethod
    def behind(cls, node: Node) -> Join | None:
        """The sum behind a call, with nothing but a batch norm and what changes nothing between."""
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


class Pairs:
    """Gives, batch by batch, a layer's inputs in a changed graph and the outputs wanted of it.

    Args:
        original: the graph before the change.
        graph: after it.
        data: batches; gone through once where the values in flight fit into memory (`BUDGET`), else once per layer.
        names: call in `graph` -> the call in `original` it stands for; equal names need no entry.
    """

    def __init__(
        self,
        original: Graph,
        graph: Graph,
        data: Iterable[list[Tensor]],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.original, self.graph, self.data, self.names = original, graph, data, names or {}
        sizes = [count(graph, batch) for batch in data]
        self.samples, self.batches = sum(sizes), len(sizes)
        self._before = {node.name: node for node in original.nodes}
        self._order = {node: position for position, node in enumerate(original.nodes)}

    def source(self, node: Node) -> Node | None:
        """The call of the original that a call stands for."""
        return self._before.get(self.names.get(node.name, node.name))

    @cached_property
    def walks(self) -> tuple[Frontier, Frontier]:
        """Made when the first layer fits: until then the data are not held."""
        batches = list(self.data)
        return Frontier(self.original, batches), Frontier(self.graph, batches)

    def __call__(self, start: Node, end: Node, kept: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch what `start` reads in the changed graph, and what `end` should give: [samples, positions, out].

        Args:
            start, end: the first and last call of what stands for one layer (the same call, where it is a layer).
            kept: the output channels that are left.
        """
        source = self.source(end)
        assert source is not None
        layer = Layer.of(source)
        assert layer is not None
        x = operand(start)
        stream = self._stream(start, end, source)
        theirs, ours = ([stream[0]], [x, stream[1]]) if stream is not None else ([], [x])
        for found, before, y in self._values(start, source, ours, theirs):
            wanted = outputs(layer, y)
            if kept is not None:
                wanted = wanted[..., kept]
            if stream is not None:
                lost = outputs(layer, before[0])
                lost = (lost if kept is None else lost[..., kept]) - outputs(layer, found[1])
                wanted = wanted + (lost if stream[2] is None else lost * stream[2])
            yield found[0], wanted

    def _stream(self, start: Node, end: Node, source: Node) -> tuple[Node, Node, Tensor | None] | None:
        """The stream the result is added to, in both graphs, and what a difference there counts before the batch norm."""
        join, first = Join.behind(end), Join.behind(source)
        if join is None or first is None or self.source(join.other) is not first.other:
            return None
        position = {node: number for number, node in enumerate(self.graph.nodes)}
        if position[join.other] >= position[start] or self._order[first.other] >= self._order[source]:
            return None  # what is computed later makes up for what is computed earlier
        return first.other, join.other, _inverse(self.graph, join.norm) if join.norm is not None else None

    def _values(
        self, start: Node, source: Node, ours: list[Node], theirs: list[Node]
    ) -> Iterator[tuple[list[Tensor], list[Tensor], Tensor]]:
        if self.samples * (in_flight(self.original, source) + in_flight(self.graph, start)) <= BUDGET:
            targets, ahead = self.walks
            found, before = ahead.before(start, ours), targets.before(source, theirs)
            yield from zip(found, before, targets.results(source), strict=True)
        else:
            original, changed = Executor(self.original), Executor(self.graph)
            for batch in self.data:
                here, there = changed.run(ours, batch), original.run([*theirs, source], batch)
                yield [here[n] for n in ours], [there[n] for n in theirs], there[source]


def _inverse(graph: Graph, norm: BatchNorm) -> Tensor:
    """What a batch norm divides by, zero where it is faint: [channels]."""
    scale = torch.rsqrt(graph.tensor(norm.var) + norm.eps)
    if norm.weight is not None:
        scale = scale * graph.tensor(norm.weight)
    strong = scale.abs() > FAINT * scale.abs().median()
    return torch.where(strong, 1 / torch.where(strong, scale, torch.ones_like(scale)), torch.zeros_like(scale))


def fits(graph: Graph, layer: Layer) -> bool:
    """Whether a layer can be fitted: no groups, and a constant weight of its own."""
    return layer.groups == 1 and graph.is_constant(layer.weight) and len(layer.weight.users) == 1


def outputs(layer: Layer, y: Tensor) -> Tensor:
    """A layer's result as [samples, positions, out]."""
    if layer.kind == "linear":
        return y.reshape(y.shape[0] if y.dim() > 1 else 1, -1, y.shape[-1])
    return y.flatten(2).transpose(1, 2)


def least_squares(weight: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Ridge regression around a weight [out, d]: the fitted weight, and the metric [d, d] its error is measured in; float64."""
    weight, xx, metric = weight.double(), moments.xx, metric_of(moments)
    return weight + torch.linalg.solve(metric, moments.xt - xx @ weight.T).T, metric


def metric_of(moments: Moments) -> Tensor:
    """Second moments of a layer's inputs with a ridge, which makes every direction count: [d, d]."""
    xx = moments.xx
    return xx + RIDGE * xx.diagonal().mean().clamp(min=1e-12) * torch.eye(len(xx), dtype=xx.dtype)


def fit(graph: Graph, layer: Layer, moments: Moments) -> None:
    """Give a layer its least-squares weight; the mean error goes into the bias."""
    old = graph.tensor(layer.weight)
    weight, _ = least_squares(weight_matrix(layer, old), moments)
    graph.put_constant(layer.weight, from_matrix(layer, weight.to(old.dtype), old))
    set_mean(graph, layer, moments.mean_t - weight @ moments.mean_x)


def set_mean(graph: Graph, layer: Layer, wanted: Tensor) -> None:
    """Let `wanted` [out] be the bias of a layer, wherever it is kept."""
    bias = layer.bias
    have = graph.tensor(bias).double() if graph.is_constant(bias) else torch.zeros_like(wanted)  # type: ignore[arg-type]
    shift_output(graph, layer, (wanted - have).to(graph.tensor(layer.weight).dtype))


def shift_output(graph: Graph, layer: Layer, shift: Tensor) -> None:
    """Add a vector [out] to what a layer gives: into its bias, into the mean of the batch norm behind it, or as a new bias."""
    readers = list(layer.node.users)
    norm = BatchNorm.of(readers[0]) if len(readers) == 1 else None
    if isinstance(layer.bias, Node) and graph.is_constant(layer.bias) and len(layer.bias.users) == 1:
        graph.put_constant(layer.bias, graph.tensor(layer.bias) + shift)
    elif norm is not None and len(norm.mean.users) == 1:
        graph.put_constant(norm.mean, graph.tensor(norm.mean) - shift)
    elif layer.bias is None:
        graph.set_bias(layer.node, shift)
