"""How much each element of a value matters: the squared gradient of the network's loss there, on its own labels.

    F = (dL / dy)^2        L: cross-entropy against the class that the network itself gives        y: a value, sample by sample

The diagonal of the Fisher information, by which a block's squared error stands for the error of the whole network. It is
divided by its mean, so that losses keep their size.

Paper: Li et al. 2021, "BRECQ", section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.fitting.losses import own_labels
from graphopt.ir.graph import Graph


def fisher(
    graph: Graph, values: Sequence[Node], batches: Sequence[list[Tensor]], keep: Callable[[Tensor], Tensor]
) -> dict[Node, list[Tensor]]:
    """Of each value the weights of its elements, batch by batch."""
    found: dict[Node, list[Tensor]] = {node: [] for node in values}
    executor = Executor(graph, leaves=values)
    for batch in batches:
        watched = executor.run([*values, *graph.results], batch)
        with torch.enable_grad():
            loss = own_labels(executor.nested(watched), batch)
        gradients = torch.autograd.grad(loss, [watched[node] for node in found])
        for parts, gradient in zip(found.values(), gradients, strict=True):
            parts.append(keep(gradient.square()))
    for parts in found.values():
        mean = max(sum(float(p.double().sum()) for p in parts) / max(1, sum(p.numel() for p in parts)), 1e-30)
        for part in parts:
            part /= mean
    return found
