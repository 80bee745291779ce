"""Groups: what has to be removed together, in words a user can read.

    for group in groups(graph):
        print(group)

    layer1.0.conv1: 64 channels
        layer1.0.conv1.weight   [64, 64, 3, 3]  dimension 0
        layer1.0.bn1.weight     [64]            dimension 0
        ...
        layer1.0.conv2.weight   [64, 64, 3, 3]  dimension 1

A unit of a group is one label: one channel of a stream with all its readers, one attention head, one position in every head, one
group of a grouped convolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch.fx.node import Node

from graphopt.analysis.channels.labels import NONE, Array, Columns
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family


@dataclass(frozen=True)
class Member:
    """One dimension of one constant that a group runs along.

    Attributes:
        node: the constant; its target is the parameter's name.
        dim: the dimension.
        units: for each index along it the unit it belongs to, or -1: it belongs to another group.
        writes: whether the constant makes the channels (the output dimension of a layer), not reads them.
    """

    node: Node
    dim: int
    units: Array
    writes: bool

    @property
    def name(self) -> str:
        return str(self.node.target)

    def indices(self, unit: int) -> Array:
        """The indices along the dimension that go with a unit."""
        return np.flatnonzero(self.units == unit)


@dataclass(frozen=True)
class Group:
    """Units of which each can be removed, and everything that goes with them.

    Attributes:
        name: the layer that makes the channels first.
        labels: [units], one label per unit, in ascending order of index.
        members: all constants and dimensions the group runs along.
        fixed: [units], which have to stay.
        why: why they have to, in a few words; empty where none has to.
        statistics: normalisations that compute statistics over the units: those change with every removal.
        stream: whether the units are sums of what several layers give (a residual stream).
        wholes: [sets, units], the sets of units that make up a dimension somewhere, all of them together first: one of each
            has to be left. (A packed layer makes the positions of queries and keys, and those of values: two more sets.)
    """

    name: str
    labels: Array
    members: tuple[Member, ...]
    fixed: npt.NDArray[np.bool_]
    why: str
    statistics: tuple[str, ...]
    stream: bool
    wholes: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def key(self) -> int:
        """What tells groups of one graph apart (heads and the positions in them are made by one layer and share its name)."""
        return int(self.labels[0])

    @property
    def free(self) -> Array:
        """The units that can be removed, each alone."""
        return self.spare(np.ones(len(self), dtype=bool))

    def spare(self, left: npt.NDArray[np.bool_]) -> Array:
        """The units that can be removed next, where of [units] these are left."""
        last = self.wholes[(self.wholes & left).sum(1) == 1].any(0)
        return np.flatnonzero(left & ~self.fixed & ~last)

    def removable(self, order: Iterable[int]) -> list[int]:
        """Of units in the order they should go, those that can."""
        left, found = np.ones(len(self), dtype=bool), []
        for unit in order:
            if unit in self.spare(left):
                left[unit] = False
                found.append(unit)
        return found

    @property
    def width(self) -> int:
        """Indices per unit where the channels are made: 64 for an attention head of 64, 1 for plain channels."""
        return max(int(np.bincount(m.units[m.units >= 0]).max()) for m in self.members if m.writes)

    @property
    def kind(self) -> str:
        """`channels`: single ones. `rows`: adjacent ones, an attention head or one group of a grouped convolution. `columns`: one
        position in every row."""
        if self.width == 1:
            return "channels"
        indices = max((m.indices(0) for m in self.members if m.writes), key=len)
        return "rows" if indices[1] == indices[0] + 1 else "columns"

    @property
    def writers(self) -> list[Member]:
        return [m for m in self.members if m.writes]

    def __str__(self) -> str:
        unit = "channels" if self.width == 1 else f"{self.kind} of {self.width} channels"
        lines = [f"{self.name}: {len(self)} {unit}"]
        if self.fixed.all():
            lines[0] += f", fixed by {self.why}"
        elif self.fixed.any():
            lines[0] += f", {int(self.fixed.sum())} of them fixed by {self.why}"
        name = max(len(m.name) for m in self.members)
        shapes = [str(list(m.node.meta["val"].shape)) for m in self.members]
        for member, shape in zip(self.members, shapes, strict=True):
            lines.append(f"    {member.name:{name}}  {shape:{max(map(len, shapes))}}  {_where(member)}")
        lines += [f"    statistics over these channels: {s}" for s in self.statistics]
        return "\n".join(lines)


def _where(member: Member) -> str:
    covered = np.flatnonzero(member.units >= 0)
    text = f"dimension {member.dim}"
    if len(covered) < len(member.units):
        first, last = covered[0], covered[-1]
        text += f", {len(covered)} indices from {first} to {last}"
    return text


def groups(graph: Graph, trace: Trace | None = None) -> list[Group]:
    """The groups of a graph, in the order of the layers that make them.

    Args:
        graph: a float graph.
        trace: its labels, where they are known already.
    """
    trace = trace or Trace(graph)
    pinned = trace.labels.pinned()
    unit_of, group_of, members_of = _units(trace)
    members: list[list[Member]] = [[] for _ in members_of]
    wholes = _wholes(trace, unit_of, group_of, members_of)
    writing = {(node, dim) for node, dim in trace.writers}
    for node, dims in trace.dims.items():
        if node.op != "get_attr":
            continue
        for dim, columns in enumerate(dims):
            for column in trace.labels.resolve(columns):
                owners = np.where(column == NONE, NONE, group_of[column])
                for owner in np.unique(owners[owners >= 0]).tolist():
                    units = np.where(owners == owner, unit_of[column], -1)
                    members[owner].append(Member(node, dim, units, (node, dim) in writing))

    def met(columns: Columns) -> list[int]:
        """The groups that have labels in these columns."""
        labels = np.concatenate([np.zeros(0, dtype=np.int64), *trace.labels.resolve(columns)])
        owners = group_of[labels[labels != NONE]]
        return np.unique(owners[owners >= 0]).tolist()  # type: ignore[no-any-return]

    statistics: list[dict[str, None]] = [{} for _ in members_of]
    for columns, node in trace.statistics:
        for owner in met(columns):
            statistics[owner][graph.site(node)] = None
    sums = [n for n in graph.calls() if family(n) == "add" and not any(map(graph.is_constant, n.all_input_nodes))]
    streams = {owner for n in sums if len(n.all_input_nodes) == 2 for c in trace.of(n) for owner in met(c)}
    return [
        _group(np.array(labels), own, pinned, tuple(names), owner in streams, wholes[owner])
        for owner, (labels, own, names) in enumerate(zip(members_of, members, statistics, strict=True))
    ]


def _units(trace: Trace) -> tuple[Array, Array, list[list[int]]]:
    """For each label its unit and its group, and for each group its labels."""
    together = nx.Graph()
    order: dict[int, int] = {}
    for node, dim in trace.writers:
        for column in trace.labels.resolve(trace.dims[node][dim]):
            found = column[column != NONE].tolist()
            nx.add_path(together, found)
            for label in found:
                order.setdefault(label, len(order))
    components = [sorted(c, key=order.__getitem__) for c in nx.connected_components(together)]
    components.sort(key=lambda c: order[c[0]])
    unit_of = np.full(trace.labels.count, NONE, dtype=np.int64)
    group_of = unit_of.copy()
    for number, component in enumerate(components):
        group_of[component] = number
        unit_of[component] = np.arange(len(component))
    return unit_of, group_of, components


def _wholes(trace: Trace, unit_of: Array, group_of: Array, members_of: list[list[int]]) -> list[npt.NDArray[np.bool_]]:
    """Of each group the sets of its units that make up a whole dimension of some value."""
    found: list[dict[bytes, npt.NDArray[np.bool_]]] = []
    for members in members_of:
        every = np.ones(len(members), dtype=bool)
        found.append({every.tobytes(): every})
    for dims in chain(trace.dims.values(), *trace.parts.values()):
        for column in chain.from_iterable(map(trace.labels.resolve, dims)):
            owners: list[int] = np.unique(group_of[column]).tolist() if (column != NONE).all() else []
            if len(owners) == 1 and owners[0] >= 0:
                units = np.zeros(len(members_of[owners[0]]), dtype=bool)
                units[unit_of[column]] = True
                found[owners[0]].setdefault(units.tobytes(), units)
    return [np.stack(list(sets.values())) for sets in found]


def _group(
    labels: Array,
    members: list[Member],
    pinned: dict[int, str],
    statistics: tuple[str, ...],
    stream: bool,
    wholes: npt.NDArray[np.bool_],
) -> Group:
    fixed = np.array([label in pinned for label in labels.tolist()])
    why = next((pinned[label] for label in labels.tolist() if label in pinned), "")
    first = next(m for m in members if m.writes)
    return Group(
        name=first.name.removesuffix(".weight"),
        labels=labels,
        members=tuple(members),
        fixed=fixed,
        why=why,
        statistics=statistics,
        stream=stream,
        wholes=wholes,
    )
