"""Bring the parts of a join to one size, exactly, so that one grid holds them all.

A part whose channels may be divided by one factor S (`graphopt.analysis.channels.scale_groups`) is divided by it where it is
written, and multiplied by it in the weights that read the join. With r = peak / reference, the size of the part beside that of
the largest part (the largest of those that cannot be scaled, if there are such), and w the largest weight that reads it beside
those that read the others,

    S = r               where w r >= 1 or no layer reads it: the part has the size of the reference
    S = sqrt(r / w)     between r and 1 elsewhere: what reads the part is not lost beside what reads the others, either

both for r < 1; r > 1 is its mirror image. Sizes beside each other by less than 10 dB stay.

Needs:  constant weights; a calibration that can be gone through again.
Keeps:  outputs, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels import ScaleGroups
from graphopt.analysis.channels.rescale import Array, factors, layer_of, rescale
from graphopt.execution.observers import observe
from graphopt.ir.calls import argument, shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.ir.passes import Change
from graphopt.passes.quantization.joins import BORNE, Join, some


class Peaks:
    """The largest magnitude seen of each index along a dimension."""

    def __init__(self, dim: int) -> None:
        self.dim, self.largest = dim, torch.zeros(())

    def update(self, value: Tensor) -> None:
        if value.numel():
            first = value.detach().abs().transpose(0, self.dim)
            peaks = first.reshape(len(first), -1).amax(1).double()  # of a single dimension, too
            self.largest = torch.maximum(self.largest, peaks)


@dataclass
class Cluster:
    """Parts of a join that share factors. Attributes: blocks: of scale groups; None where a part cannot be scaled."""

    parts: list[Node]
    blocks: frozenset[int] | None


def balance(graph: Graph, joins: Sequence[Join], data: Iterable[list[Tensor]], *, clips: bool = True) -> list[Change]:
    """Scale parts of joins that integer layers read. `clips`: whether those may get other ends."""
    joins = [join for join in joins if join.readers and family(join.node) == "concat" and len(join.parts) > 1]
    if not joins:
        return []
    work = _Balance(graph, clips=clips)
    clusters = {join: work.clusters(join) for join in joins}
    clusters = {j: c for j, c in clusters.items() if len(c) > 1 and any(x.blocks is not None for x in c)}
    peaks = {(p, _axis(j)): Peaks(_axis(j)) for j in clusters for p in j.parts}
    watched: dict[Node, list[Peaks]] = {}
    for (part, _), seen in peaks.items():
        watched.setdefault(part, []).append(seen)
    if watched:
        observe(graph, watched, some(graph, data))  # type: ignore[arg-type]
    for join, found in clusters.items():
        work.settle(join, found, {part: peaks[part, _axis(join)] for part in join.parts})
    return rescale(graph, work.groups, work.scale) if (work.scale != 1).any() else []


class _Balance:
    """Attributes: scale: [groups], what values are divided by. settled: blocks that a join has scaled; others take them so."""

    def __init__(self, graph: Graph, *, clips: bool) -> None:
        self.graph, self.groups = graph, ScaleGroups.of(graph)
        if not clips:
            self.groups.pin(self.groups.clips, "a clip that keeps its end")
        self.scale: Array = np.ones(self.groups.count)
        self.blocks = self.groups.blocks()
        self.block_of = np.full(self.groups.count, -1)
        for number, block in enumerate(self.blocks):
            self.block_of[block] = number
        self.settled: set[int] = set()

    def clusters(self, join: Join) -> list[Cluster]:
        found = {part: self.blocks_of(part, _axis(join)) for part in join.parts}
        ties = nx.Graph()
        ties.add_nodes_from(found)
        for part, blocks in found.items():
            ties.add_edges_from((part, block) for block in blocks or ())
        clusters = []
        for component in nx.connected_components(ties):
            parts = [part for part in join.parts if part in component]
            free = [blocks for part in parts if (blocks := found[part]) is not None]
            clusters.append(Cluster(parts, frozenset().union(*free) if len(free) == len(parts) else None))
        return clusters

    def blocks_of(self, part: Node, dim: int) -> frozenset[int] | None:
        """The blocks that a part's channels belong to; None where one of them has to stay."""
        groups = self.groups.along(part, dim)
        if not len(groups) or (groups < 0).any():
            return None
        blocks = frozenset(np.unique(self.block_of[groups]).tolist())
        whole = np.concatenate([self.blocks[b] for b in blocks])
        return None if self.groups.pinned[whole].any() else blocks

    def settle(self, join: Join, clusters: list[Cluster], peaks: dict[Node, Peaks]) -> None:
        sizes = [max(self.peak(part, _axis(join), peaks[part]) for part in c.parts) for c in clusters]
        free = [c.blocks is not None and not c.blocks & self.settled for c in clusters]
        fixed = [size for size, is_free in zip(sizes, free, strict=True) if not is_free]
        reference = max(fixed or sizes)
        for cluster, size, is_free in zip(clusters, sizes, free, strict=True):
            if not is_free or cluster.blocks is None or not size or not reference:
                continue
            if abs(20 * math.log10(size / reference)) > BORNE:
                block = np.concatenate([self.blocks[b] for b in cluster.blocks])
                self.scale[block] *= _factor(size / reference, self.weight(block))
                self.settled |= cluster.blocks

    def peak(self, part: Node, dim: int, seen: Peaks) -> float:
        return float((seen.largest.numpy() / factors(self.groups.along(part, dim), self.scale)).max(initial=0.0))

    def weight(self, groups: Array) -> float:
        """The largest weight that reads these groups, beside the largest that reads others in the same layer; 0 if none does."""
        found = [0.0]
        for site in self.groups.reads:
            layer = layer_of(site.node)
            mine = np.isin(site.labels, groups)
            if layer.groups > 1 or mine.all() or not mine.any():
                continue
            weight = layer.canonical(self.graph.tensor(layer.weight)).abs().double()
            columns = weight.transpose(0, 1).flatten(1).amax(1).numpy() * factors(site.labels, self.scale)
            if (others := columns[~mine].max()) > 0:
                found.append(float(columns[mine].max() / others))
        return max(found)


def _axis(join: Join) -> int:
    dim: int = argument(join.node, "dim") or 0
    return dim % len(shape(join.node))


def _factor(ratio: float, weight: float) -> float:
    """S for a part of a size beside the reference's, read by weights beside the others'; see the head of this file."""
    if not weight:
        return ratio
    ends = sorted((ratio, 1.0))
    return min(max(math.sqrt(ratio / weight), ends[0]), ends[1])
