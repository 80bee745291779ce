"""Sparsely gated mixtures of experts in a graph: routers, which experts they take, and how often.

    h = W x                                   scores of experts, [N, E], or [N, ..., E] of tokens
    taken = the `take` largest of them        `graphopt.ir.selecting.best`

`graphopt.passes.AddExperts` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.calls import shape
from graphopt.ir.facts import ROUTER, TAKEN
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import is_quantizer
from graphopt.utils.errors import InputError


class Mixture(NamedTuple):
    """Attributes:
    name: of the part that there are experts of. router: the linear layer of scores. scores: what is compared, the router's
        result or what its quantizer gives. taken: which experts are taken, bool. take: how many. experts: how many there are.
    """

    name: str
    router: Node
    scores: Node
    taken: Node
    take: int
    experts: int


def mixtures(graph: Graph) -> list[Mixture]:
    """The mixtures of a graph, in execution order."""
    taken = {name: node for node in graph.calls() if (name := graph.fact(node, TAKEN)) is not None}
    routers = [(name, node) for node in graph.calls() if (name := graph.fact(node, ROUTER)) is not None]
    return [_mixture(name, router, taken[name]) for name, router in routers if name in taken]


def _mixture(name: str, router: Node, taken: Node) -> Mixture:
    one = taken.target is aten.eq.Tensor
    readers = list(router.users)
    scores = readers[0] if len(readers) == 1 and is_quantizer(readers[0]) else router
    take = 1 if one else int(taken.args[1])  # type: ignore[arg-type]
    return Mixture(name, router, scores, taken, take, int(shape(router)[-1]))


def experts_taken(graph: Graph, data: Iterable[list[Tensor]]) -> dict[str, list[float]]:
    """The share of samples, or tokens, that each expert of each mixture is taken for.

    Args:
        data: batches of input tensors.

    Raises:
        InputError: the graph has no mixtures, or the data are empty.
    """
    known = mixtures(graph)
    if not known:
        raise InputError("the graph has no mixtures of experts; apply graphopt.passes.AddExperts first")
    executor, counts, total = Executor(graph), [torch.zeros(mixture.experts) for mixture in known], [0] * len(known)
    with torch.no_grad():
        for batch in data:
            values = executor.run([mixture.taken for mixture in known], batch)
            for number, mixture in enumerate(known):
                rows = values[mixture.taken].reshape(-1, mixture.experts)
                counts[number] += rows.sum(0)
                total[number] += len(rows)
    if not all(total):
        raise InputError("the data have no samples to count experts on")
    return {m.name: (count / n).tolist() for m, count, n in zip(known, counts, total, strict=True)}
