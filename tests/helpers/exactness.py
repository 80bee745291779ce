"""Is removal exact? A network whose removed units are zeroed must answer what the network without them answers.

    chosen = quarter(found)                    # 25 % of the free units of every group
    reference = Reference(graph, trace, chosen)
    remove(graph, trace, chosen)
    difference(reference(*inputs), graph(*inputs))

Every constant the removed units run along is zeroed at their indices, in a copy; a removed channel is then zero, or a constant
that is read with weight zero. Where an operator takes statistics over removed channels (layer norm, mean over channels), zeros
would count as values: there the reference computes the statistics over the channels that survive, and puts the result back
between zeros. Products of two values sum over survivors, too. Which survive is read off the trace; nothing of
`graphopt.analysis.channels.removal` is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten

EXACT = 1e-5  # of the largest output
PRODUCTS = (aten.matmul.default, aten.bmm.default)

Chosen = list[tuple[Group, list[int]]]


def quarter(groups: Iterable[Group], share: float = 0.25, seed: int = 0) -> Chosen:
    """A share of the free units of every group, at least one, drawn at random; groups that have none are left out."""
    draw = np.random.default_rng(seed)
    chosen = []
    for group in groups:
        count = min(max(1, round(len(group.free) * share)), len(group) - 1, len(group.free))
        if count > 0:
            chosen.append((group, sorted(draw.choice(group.free, count, replace=False).tolist())))
    return chosen


def difference(expected: Any, found: Any) -> float:
    """The largest difference, relative to the largest value expected."""
    expected, found = (
        [t.detach().double() for t in pytree.tree_leaves(r) if isinstance(t, Tensor)] for r in (expected, found)
    )
    assert [t.shape for t in expected] == [t.shape for t in found]
    scale = max(float(t.abs().max()) for t in expected)
    apart = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    return apart / scale if scale else float("nan")


class Reference:
    """The network with the chosen units zeroed, statistics over the survivors. Make it before removing.

    Attributes:
        graph: the copy with zeros.
        surviving: the calls whose statistics are taken over survivors, by name; empty for a plain comparison with zeros.
    """

    def __init__(self, graph: Graph, trace: Trace, chosen: Chosen) -> None:
        self.graph = graph.clone()
        state = dict([*self.graph.named_parameters(), *self.graph.named_buffers()])
        for group, units in chosen:
            for member in group.members:
                gone = torch.from_numpy(np.flatnonzero(np.isin(member.units, units)))
                state[member.name].data.index_fill_(member.dim, gone, 0.0)
        labels = np.concatenate([np.zeros(0, dtype=np.int64), *(group.labels[units] for group, units in chosen)])
        self.surviving: dict[str, list[Tensor | None]] = {}
        for columns, node in trace.statistics:
            if any(np.isin(column, labels).any() for column in trace.labels.resolve(columns)):
                self.surviving[node.name] = survivors(trace, node.args[0], labels)
        for node in graph.calls():
            if node.target not in PRODUCTS or not isinstance(value(operand(node)).shape[-1], int):
                continue  # what is summed over a free size has no channels there
            if not any(graph.is_constant(source) for source in node.args):
                self.surviving[node.name] = survivors(trace, operand(node), labels, value(operand(node)).dim() - 1)

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            leaves = pytree.tree_leaves((inputs, {}))
            return _Over(self.graph.module, self.surviving).run(*leaves, enable_io_processing=False)


def survivors(trace: Trace, node: Any, labels: Any, first: int = 0) -> list[Tensor | None]:
    """For each dimension of a value, from `first` on, the indices none of whose labels is gone; None for all of a free size."""
    found: list[Tensor | None] = []
    for dim, size in list(enumerate(value(node).shape))[first:]:
        if not isinstance(size, int):
            found.append(None)
            continue
        kept = np.ones(size, dtype=bool)
        for column in trace.labels.resolve(trace.of(node)[dim]):
            kept &= ~np.isin(column, labels)
        found.append(torch.from_numpy(np.flatnonzero(kept)))
    return found


class _Over(fx.Interpreter):
    """Runs a graph, some calls over the survivors of their first argument only."""

    def __init__(self, module: fx.GraphModule, surviving: dict[str, list[Tensor | None]]) -> None:
        super().__init__(module)
        self.surviving = surviving

    def run_node(self, n: Node) -> Any:
        kept: Any = self.surviving.get(n.name)
        if kept is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x: Tensor = args[0]
        if n.target in (aten.layer_norm.default, aten.rms_norm.default):
            count = len(argument(n, "normalized_shape"))
            over = list(range(x.dim() - count, x.dim()))
            small = take(x, kept, over)
            own = [take(p, [kept[d] for d in over], range(count)) if isinstance(p, Tensor) else p for p in args[2:4]]
            return put(n.target(small, list(small.shape[-count:]), *own, *args[4:], **kwargs), x, kept, over)
        if n.target is aten.group_norm.default:
            rows = (kept[1] // (x.shape[1] // args[1])).unique()
            own = [p[kept[1]] if isinstance(p, Tensor) else p for p in args[2:4]]
            small = n.target(take(x, kept, [1]), len(rows), *own, *args[4:], **kwargs)
            return put(small, x, kept, [1])
        if n.target in (
            aten.batch_norm.default,
            aten.instance_norm.default,
        ):  # of the dimensions that are averaged over
            over = [d for d in range(x.dim()) if d != 1 and (d or n.target is aten.batch_norm.default)]
            return put(n.target(take(x, kept, over), *args[1:], **kwargs), x, kept, over)
        if n.target in PRODUCTS:
            other: Tensor = args[1]
            return n.target(x[..., kept[-1]], other.index_select(max(other.dim() - 2, 0), kept[-1]))
        over = _reduced(n, x.dim())
        return n.target(take(x, kept, over), *args[1:], **kwargs)  # type: ignore[operator]


def _reduced(node: Node, count: int) -> list[int]:
    given = argument(node, "dim") if "dim" in [a.name for a in node.target._schema.arguments] else None  # type: ignore[union-attr]
    over = [given] if isinstance(given, int) else list(range(count)) if not given else list(given)
    return [d % count for d in over]


def take(x: Tensor, kept: list[Tensor | None], dims: Iterable[int]) -> Tensor:
    for dim in dims:
        if (indices := kept[dim]) is not None:
            x = x.index_select(dim, indices)
    return x


def put(small: Tensor, like: Tensor, kept: list[Tensor | None], dims: list[int]) -> Tensor:
    """The survivors' values in their places, zeros in the others."""
    shape = list(small.shape)
    for dim in reversed(dims):
        shape[dim] = like.shape[dim]
        if (indices := kept[dim]) is not None:
            small = small.new_zeros(shape).index_copy(dim, indices, small)
    return small
