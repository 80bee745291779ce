"""Scores of networks that are not trained, for ranking: no accuracy, but often in its order. Higher is better.

    search(graph, {"macs": 0.5}, evaluate=relu_patterns(images), data=[[images]], evaluations=500)

    gradient_norm    |gradient of the loss| over all weights        Abdelfattah et al. 2021, "Zero-Cost Proxies", section 3.1
    synaptic_flow    sum |w dR/dw|, R = sum of the answers of the network of |w| to ones     Tanaka et al. 2020, "SynFlow"
    relu_patterns    log det K, K[i, j]: the ReLUs that are on, or off, for both samples i and j    Mellor et al. 2021, equation 2

Each is a function for `evaluate`. Check the order on a few trained networks of your own space before you believe it:
`scipy.stats.kendalltau`; what it was on ours is in docs/results/search.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.training.losses import Loss, loss_of, output
from graphopt.utils.errors import InputError

Proxy = Callable[[Callable[..., Any]], float]


def gradient_norm(x: Tensor, y: Tensor, loss: str | Loss | None = None) -> Proxy:
    """Of one batch of inputs and targets."""
    measure = loss_of(loss)

    def proxy(model: Callable[..., Any]) -> float:
        graph = graph_of(model)
        learned = _learned(graph)
        runner = Executor(graph, constants=learned, gradients=True, training=True)
        gradients = _gradients(measure(runner(x), y), learned)
        return float(torch.stack([g.norm() for g in gradients.values()]).sum())

    return proxy


def synaptic_flow(x: Tensor) -> Proxy:
    """Of one input of this shape; its values do not matter."""

    def proxy(model: Callable[..., Any]) -> float:
        graph = graph_of(model)
        learned = {node: p.detach().abs().double().requires_grad_() for node, p in _learned(graph).items()}
        others = {
            node: graph.tensor(node).double()
            for node in graph.nodes
            if graph.is_constant(node) and node not in learned and graph.tensor(node).is_floating_point()
        }
        statistics = {node: _plain(node, value) for node, value in others.items()}
        runner = Executor(graph, constants={**learned, **statistics}, gradients=True)
        found = output(runner.nested(runner.run(graph.results, {graph.inputs[0]: torch.ones_like(x[:1]).double()})))
        gradients = _gradients(found.sum(), learned)
        total = sum(float((learned[node] * g).abs().sum()) for node, g in gradients.items())
        return math.log(max(total, 1e-300))

    return proxy


def relu_patterns(x: Tensor) -> Proxy:
    """Of one batch of inputs; some dozens tell networks apart."""

    def proxy(model: Callable[..., Any]) -> float:
        graph = graph_of(model)
        kernel = torch.zeros(len(x), len(x), dtype=torch.float64)
        clipped = 0
        runner = Executor(graph)
        values = runner.inputs([x])
        with torch.no_grad():
            for node in runner.walk(values, graph.outputs):
                if family(node) in ("relu", "relu6"):
                    on = (values[node] > 0).flatten(1).double()
                    kernel += on @ on.T + (1 - on) @ (1 - on).T
                    clipped += 1
        if not clipped:
            raise InputError("relu_patterns looks at ReLUs, and the network has none; take another proxy")
        return float(torch.linalg.slogdet(kernel).logabsdet)

    return proxy


def graph_of(model: Callable[..., Any]) -> Graph:
    """The graph that a search runs, or a graph itself."""
    found = model.graph if isinstance(model, Executor) else model
    if not isinstance(found, Graph):
        raise InputError("a proxy looks into a graph; it is for graphopt.supernets.search, or for a Graph")
    return found


def _learned(graph: Graph) -> dict[Node, Tensor]:
    constants = (node for node in graph.nodes if graph.is_constant(node))
    return {n: graph.parameter(n) for n in constants if isinstance(graph.parameter(n), nn.Parameter)}


def _gradients(total: Tensor, learned: dict[Node, Tensor]) -> dict[Node, Tensor]:
    found = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    return {node: g for node, g in zip(learned, found, strict=True) if g is not None}


def _plain(node: Node, value: Tensor) -> Tensor:
    """Running means of zero and variances of one: norms scale, and do no more."""
    for reader in node.users:
        if family(reader) == "batch_norm":
            return torch.zeros_like(value) if reader.args[3] is node else torch.ones_like(value)
    return value
