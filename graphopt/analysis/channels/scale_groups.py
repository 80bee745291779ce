"""Scale groups: channels that may be divided by one positive factor, all together, without changing what a graph computes.

    groups = ScaleGroups.of(graph)
    for site in groups.writes: ...      # site.labels: int [out channels], the group of each

The value of a group's channels is divided by s where rows of weights, biases and other parameters are, and multiplied by s in the
columns of weights that read it. A group that meets something that does not keep a factor (the model's output, a sigmoid) is
pinned: its factor has to stay 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch.fx.node import Node

from graphopt.analysis.channels.labels import NONE, Array
from graphopt.analysis.channels.scale_trace import ScaleTrace, Site
from graphopt.analysis.channels.trace import sizes
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph


@dataclass
class ScaleGroups:
    """The groups of a graph, numbered in the order of the layers that write them.

    Attributes:
        count: number of groups.
        writes: for every layer, the groups of its output channels.
        reads: for every layer whose input has groups, those of its input channels; `NONE` where a channel has none.
        parameters: other constants, each divided along its channels as its groups are; those of channels without a group stay.
        clips: clips from zero to one end, and the groups of the channels they clip.
        pinned: [count], which groups have to keep the factor 1.
        why: for every pinned group the call that pins it, in a few words.
    """

    count: int
    writes: list[Site]
    reads: list[Site]
    parameters: list[Site]
    clips: list[Site]
    pinned: npt.NDArray[np.bool_]
    why: dict[int, str] = field(default_factory=dict)
    _trace: ScaleTrace | None = field(default=None, repr=False)
    _lookup: Array = field(default_factory=lambda: np.array([NONE]), repr=False)

    @classmethod
    def of(cls, graph: Graph) -> ScaleGroups:
        """Follow channels through layers, sums, joins, moves, homogeneous functions and clips."""
        trace = ScaleTrace(graph)
        kinds = (trace.writes, trace.reads, trace.parameters, trace.clips)
        why = trace.labels.pinned()
        lookup = np.full(trace.labels.count + 1, NONE)  # the last is NONE's
        found = [[trace.labels.roots(site.labels) for site in sites] for sites in kinds]
        used = np.concatenate([np.zeros(0, np.int64), *found[0], *found[1]])
        used = used[used != NONE]
        kept = list(dict.fromkeys(used.tolist()))
        lookup[kept] = np.arange(len(kept))
        writes, reads, parameters, clips = (
            [replace(site, labels=lookup[column]) for site, column in zip(sites, columns, strict=True)]
            for sites, columns in zip(kinds, found, strict=True)
        )
        pins = {int(lookup[label]): reason for label, reason in why.items() if lookup[label] != NONE}
        pinned = np.zeros(len(kept), dtype=bool)
        pinned[list(pins)] = True
        return cls(len(kept), writes, reads, parameters, clips, pinned, pins, trace, lookup)

    def along(self, node: Node, dim: int) -> Array:
        """The groups of a value's channels along a dimension; `NONE` for those that have none. Of the graph as it was traced."""
        columns = self._trace.dims[node][dim] if self._trace is not None and node in self._trace.dims else []
        if not columns or self._trace is None:
            return np.full(sizes(value(node))[dim], NONE)
        return self._lookup[self._trace.labels.roots(columns[0])]

    def pin(self, sites: Iterable[Site], reason: str) -> None:
        """Let the groups of these channels keep the factor 1."""
        for site in sites:
            for group in np.unique(site.labels[site.labels != NONE]).tolist():
                self.pinned[group] = True
                self.why.setdefault(group, reason)

    def blocks(self) -> list[Array]:
        """Groups that occur together in one layer's output, as arrays: what an algorithm may treat in one vector step."""
        ties = nx.Graph()
        for site in self.writes:
            nx.add_path(ties, site.labels[site.labels != NONE].tolist())
        found = [np.array(sorted(c), dtype=np.int64) for c in nx.connected_components(ties)]
        return sorted(found, key=lambda block: int(block[0]))
