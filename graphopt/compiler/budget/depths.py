"""Choices of depth: every residual block is there, or not. An option's value is the name by which `RemoveBlocks` finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.branches import branches
from graphopt.analysis.output_error import Probe
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.remove_blocks import without
from graphopt.searching import Choice, Option
from graphopt.utils.progress import track

MOST = 0.5  # damage: without such a block there is no network left


@dataclass(frozen=True)
class Depths:
    """The residual blocks that may go: a choice for each, and the calls that go with it."""

    choices: list[Choice]
    calls: list[frozenset[Node]]

    @classmethod
    def of(cls, graph: Graph, data: Iterable[list[Tensor]] | None) -> Depths:
        """With the damage measured on data; without data, no block is known to be dispensable."""
        found = branches(graph) if data is not None else []
        if not found or data is None:
            return cls([], [])
        probe, choices, calls = Probe(graph, data), [], []
        sites = [graph.site(branch.total) for branch in found]
        for number, branch in enumerate(track(found, "leaving out blocks")):
            shorter = without(graph, number)
            damage = probe.damage(shorter)
            if damage > MOST:
                continue
            site = sites[number]
            name = site if sites.count(site) == 1 else branch.total.name
            choices.append(Choice(name, "block", (Option("there", 0.0), Option("gone", damage, name))))
            left = {node.name for node in shorter.calls()}
            calls.append(frozenset(node for node in graph.calls() if node.name not in left))
        return cls(choices, calls)
