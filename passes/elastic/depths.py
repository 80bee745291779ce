"""Residual blocks become choices: x + f(x), or x."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.analysis.branches import branches
from graphopt.ir.choices import CHOOSE, constant_name, one_hot
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change


def insert_depths(graph: Graph, chosen: Callable[[str], bool]) -> list[Change]:
    """A choice between the sum and the stream, for each residual branch."""
    changes = []
    for total, stream, _ in branches(graph):
        name = graph.site(total)
        if not chosen(name):
            continue
        readers = list(total.users)
        behind = graph.after(total)
        weights = graph.add_constant(constant_name(name, "block"), one_hot(0, 2), before=behind)
        call = graph.call(CHOOSE, [total, stream], weights, before=behind, like=total)
        call.meta["val"] = total.meta["val"]
        for reader in readers:
            reader.replace_input_with(total, call)
        changes.append(Change(name, "may be left out"))
    return changes
