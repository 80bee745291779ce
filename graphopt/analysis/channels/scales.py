"""Which channels belong together: labels pushed through the graph.

Every output channel of a convolution or linear layer gets a label of its own. Labels travel with the values:

    data movement    (reshape, permute, cat, split, slice, pad, ...) the operator itself is run on a tensor of labels, and
                     where the labels went is read off the result: concat offsets, flatten into linear and the rest need no
                     case of their own
    elementwise      inputs that meet are tied: their labels mean the same channel from then on; functions are followed that
                     are homogeneous, f(s x) = s f(x), and clips from zero
    readers          a layer that reads the value ties the labels to its input dimension, and starts new ones

networkx holds the ties; its connected components are the groups. A label that meets something this analysis does not follow
(an unknown operator, the model's output, a broadcast) is *pinned*: it belongs to a group, but that group has to stay as it is.

    channels = Channels.of(graph)
    for layer, groups in channels.writes: ...      # groups: int array [out channels], the group of each
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import argument, clip_of, family, info, operand, shape, value

Labels = npt.NDArray[np.int64]
ZERO = -1  # the label of a channel that is constantly zero (padding)


class Slot(NamedTuple):
    """A layer and the label, later the group, of each of its output (or input) channels."""

    layer: Layer
    groups: Labels


class Flow(NamedTuple):
    """A value's labels and the dimension they lie along."""

    dim: int
    labels: Labels


@dataclass
class Channels:
    """The groups of a graph.

    Attributes:
        count: number of groups.
        writes: for every layer, the groups of its output channels.
        reads: for every layer whose input could be followed, the groups of its input channels.
        clips: relu-like calls with an upper end, and the groups of the channels they clip.
        pinned: [count], which groups meet something that was not followed.
        flows: the groups of every followed value.
    """

    count: int = 0
    writes: list[Slot] = field(default_factory=list)
    reads: list[Slot] = field(default_factory=list)
    clips: list[tuple[Node, Labels]] = field(default_factory=list)
    pinned: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    flows: dict[Node, Flow] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Channels:
        """Follow channels through layers, sums, joins, moves, homogeneous functions and clips."""
        return _Tracer(graph).run()

    def blocks(self) -> list[npt.NDArray[np.int64]]:
        """Groups that occur together in one layer's output, as arrays: what an algorithm may treat in one vector step."""
        ties = nx.Graph()
        for slot in self.writes:
            members = slot.groups[slot.groups >= 0]
            nx.add_path(ties, members.tolist())
        found = [np.array(sorted(c), dtype=np.int64) for c in nx.connected_components(ties)]
        return sorted(found, key=lambda block: int(block[0]))


class _Tracer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.channels = Channels()
        self.ties = nx.Graph()
        self.total = 0
        self.pins: list[Labels] = []
        self.flows: dict[Node, Flow] = {}

    def run(self) -> Channels:
        for node in self.graph.nodes:
            if node.op == "output":
                self.pin(*node.all_input_nodes)
            elif node.op == "call_function":
                self.visit(node)
        return self.finish()

    def visit(self, node: Node) -> None:
        kind, known = family(node), info(node)
        if (layer := Layer.of(node)) is not None:
            self.layer(layer)
        elif kind == "add":
            self.meet(node)
        elif kind == "mul":
            self.scale(node)
        elif kind == "concat":
            self.concatenate(node)
        elif known.fusable and not known.homogeneous and self.clips_from_zero(node):
            flow = self.keep(node)
            if flow is not None:
                self.channels.clips.append((node, flow.labels))
        elif kind == "pad" or known.moves:
            self.move(node)
        elif kind == "mean":
            self.reduce(node)
        elif known.homogeneous:
            self.keep(node)
        else:
            self.pin(*node.all_input_nodes)

    # ---- Rules ------------------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> None:
        flow = self.flows.get(layer.input)
        if flow is not None and flow.dim == _channel_dim(layer, layer.input) and len(flow.labels) == layer.in_channels:
            self.channels.reads.append(Slot(layer, flow.labels))
        else:
            self.pin(layer.input)
        self.pin(*(n for n in layer.node.all_input_nodes if n is not layer.input))
        labels = np.arange(self.total, self.total + layer.out_channels)
        self.total += layer.out_channels
        self.flows[layer.node] = Flow(layer.channel_dim, labels)
        self.channels.writes.append(Slot(layer, labels))

    def meet(self, node: Node) -> None:
        """A sum ties its operands channel by channel; an operand without labels, or one that is broadcast, pins."""
        flows = [self.aligned(node, operand) for operand in node.args[:2]]
        known = [f for f in flows if f is not None]
        same = len(known) == 2 and known[0].dim == known[1].dim and len(known[0].labels) == len(known[1].labels)
        if not same:
            self.pin(*node.all_input_nodes)
        elif known:
            self.tie(known[0].labels, known[1].labels)
            both = np.where(known[0].labels == ZERO, known[1].labels, known[0].labels)
            self.flows[node] = Flow(known[0].dim, both)

    def scale(self, node: Node) -> None:
        """A product with a scalar or a gate: the gate stays as it is, the value behind it keeps its channels."""
        operands = [a for a in node.args[:2] if isinstance(a, Node)]
        labelled = sorted(
            (o for o in operands if o in self.flows), key=lambda o: -value(o).numel() if _static(o) else 0
        )
        if len(operands) == 2 and operands[0] is operands[1]:
            self.pin(operands[0])
            return
        main = next((o for o in labelled if shape(o) == shape(node)), None)
        self.pin(*(o for o in operands if o is not main))
        if main is not None:
            self.flows[node] = self.flows[main]

    def concatenate(self, node: Node) -> None:
        parts: list[Node] = list(node.args[0])  # type: ignore[arg-type]
        flows = [self.flows.get(p) for p in parts]
        dim = (argument(node, "dim") or 0) % len(shape(node))
        if any(f is None for f in flows) or len({f.dim for f in flows if f}) != 1:
            if not self.flows_from_parts(node, parts, flows, dim):
                self.pin(*parts)
            return
        known = [f for f in flows if f is not None]
        if known[0].dim == dim:
            self.flows[node] = Flow(dim, np.concatenate([f.labels for f in known]))
        else:
            for other in known[1:]:
                self.tie(known[0].labels, other.labels)
            self.flows[node] = known[0]

    def flows_from_parts(self, node: Node, parts: list[Node], flows: list[Flow | None], dim: int) -> bool:
        """Some parts are unknown: theirs become fresh, pinned labels, so that the known ones keep their readers."""
        if any(f is not None and f.dim != dim for f in flows) or not any(flows):
            return False
        labels = []
        for part, flow in zip(parts, flows, strict=True):
            if flow is not None:
                labels.append(flow.labels)
            else:
                size = shape(part)[dim]
                fresh = np.arange(self.total, self.total + size)
                self.total += size
                self.pins.append(fresh)
                labels.append(fresh)
        self.flows[node] = Flow(dim, np.concatenate(labels))
        return True

    def keep(self, node: Node) -> Flow | None:
        """An operator that works inside each channel."""
        source = node.args[0]
        flow = self.flows.get(source) if isinstance(source, Node) else None
        if flow is None:
            return None
        last = len(shape(source)) - 1  # type: ignore[arg-type]
        per_channel = family(node) == "prelu" and last > 0
        if (per_channel or not info(node).pointwise) and flow.dim != 1:
            self.pin(source)  # type: ignore[arg-type]
            return None
        self.flows[node] = flow
        return flow

    def reduce(self, node: Node) -> None:
        source = operand(node)
        flow = self.flows.get(source)
        if flow is None:
            return
        dims = len(shape(source))
        reduced = {d % dims for d in (argument(node, "dim") or range(dims))}
        if flow.dim in reduced:
            self.pin(source)
            return
        shift = 0 if argument(node, "keepdim") else sum(d < flow.dim for d in reduced)
        self.flows[node] = Flow(flow.dim - shift, flow.labels)

    def move(self, node: Node) -> None:
        """Run the operator on labels and read where they went."""
        source = node.args[0]
        flow = self.flows.get(source) if isinstance(source, Node) else None
        if isinstance(source, Node) and not isinstance(value(source), Tensor):  # getitem of a split
            self.take(node, source)
            return
        if flow is None:
            return
        sizes = [_size(s) for s in shape(source)]  # type: ignore[arg-type]
        along = [-1 if d == flow.dim else 1 for d in range(len(sizes))]
        tensor = torch.from_numpy(flow.labels).reshape(along).expand(sizes).contiguous()
        result = _run(node, tensor)
        parts = result if isinstance(result, (list, tuple)) else [result]
        found = [_read(part, flow.dim) for part in parts]
        if any(f is None for f in found):
            self.pin(source)  # type: ignore[arg-type]
        elif isinstance(result, Tensor):
            assert found[0] is not None
            self.flows[node] = found[0]
        else:
            self.parts[node] = found  # type: ignore[assignment]

    @property
    def parts(self) -> dict[Node, list[Flow]]:
        return self.__dict__.setdefault("_parts", {})  # type: ignore[no-any-return]

    def take(self, node: Node, source: Node) -> None:
        if source in self.parts:
            self.flows[node] = self.parts[source][node.args[1]]  # type: ignore[index]

    # ---- Bookkeeping ------------------------------------------------------------------------------------------------

    def clips_from_zero(self, node: Node) -> bool:
        ends = clip_of(node)
        return ends is None or ends[0] == 0.0

    def aligned(self, node: Node, operand: Any) -> Flow | None:
        """The labels of an operand that has the result's full shape."""
        if not isinstance(operand, Node) or operand not in self.flows or shape(operand) != shape(node):
            return None
        return self.flows[operand]

    def tie(self, one: Labels, other: Labels) -> None:
        both = (one != ZERO) & (other != ZERO)
        self.ties.add_edges_from(zip(one[both].tolist(), other[both].tolist(), strict=True))

    def pin(self, *values: Node) -> None:
        self.pins += [self.flows[v].labels for v in values if v in self.flows]
        for v in values:
            for flow in self.parts.get(v, ()):
                self.pins.append(flow.labels)

    def finish(self) -> Channels:
        group = np.arange(self.total, dtype=np.int64)
        for component in nx.connected_components(self.ties):
            members = np.fromiter(component, dtype=np.int64)
            group[members] = members.min()
        unique, group = np.unique(group, return_inverse=True)
        lookup = np.append(group, ZERO)  # so that label ZERO stays ZERO

        done = self.channels
        done.count = len(unique)
        done.writes = [Slot(s.layer, lookup[s.groups]) for s in done.writes]
        done.reads = [Slot(s.layer, lookup[s.groups]) for s in done.reads]
        done.clips = [(node, lookup[labels]) for node, labels in done.clips]
        done.flows = {node: Flow(f.dim, lookup[f.labels]) for node, f in self.flows.items()}
        done.pinned = np.zeros(done.count, bool)
        for labels in self.pins:
            done.pinned[lookup[labels[labels != ZERO]]] = True
        return done


def _channel_dim(layer: Layer, source: Node) -> int:
    return len(shape(source)) - 1 - layer.dims


def _static(node: Node) -> bool:
    return all(isinstance(s, int) for s in shape(node)[1:])


def _size(size: Any) -> int:
    """A size as a number: a free one as it was while capturing."""
    return size if isinstance(size, int) else int(size.node.hint)


def _run(node: Node, labels: Tensor) -> Any:
    """Call the node's operator on labels in place of its first argument."""

    def concrete(leaf: Any) -> Any:
        if isinstance(leaf, Node):
            found = value(leaf)
            return found if isinstance(found, Tensor) else _size(found)
        return leaf

    args, kwargs = pytree.tree_map(concrete, (node.args[1:], node.kwargs))
    if family(node) == "pad":
        pads = argument(node, "pad")
        return torch.nn.functional.pad(labels, pads, value=ZERO)
    if family(node) == "resize_nearest":  # has no integer kernel in torch
        return node.target(labels.double(), *args, **kwargs).long()  # type: ignore[operator]
    return node.target(labels, *args, **kwargs)  # type: ignore[operator]


def _read(labels: Tensor, before: int) -> Flow | None:
    """The dimension along which labels lie, if along one only. Spatial zero padding around a channel is overlooked.

    Where all labels are the same it could be any dimension: the one they lay along `before`, if there is one.
    """
    if 0 in labels.shape:
        return None
    for dim in sorted(range(labels.dim()), key=lambda d: d != before):
        others = [d for d in range(labels.dim()) if d != dim]
        line = labels.amax(others, keepdim=True) if others else labels
        if bool(((labels == line) | (labels == ZERO)).all()):
            return Flow(dim, line.flatten().numpy())
    return None
