"""How much each element of a value matters: the squared gradient of the network's loss there, on its own labels.

    F = (dL / dy)^2        L: cross-entropy against the class that the network itself gives        y: a value, sample by sample

The diagonal of the Fisher information, by which a block's squared error stands for the error of the whole network. It is
divided by its mean, so that losses keep their size.

Paper: Li et al. 2021, "BRECQ", section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.fitting.losses import own_labels
from graphopt.ir.graph import Graph


class _Watched(fx.Interpreter):
    def __init__(self, graph: Graph, wanted: Sequence[Node]) -> None:
        super().__init__(graph.module)
        self.wanted, self.found = set(wanted), dict[Node, Tensor]()

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.wanted:
            self.found[n] = result = result.detach().requires_grad_() if not result.requires_grad else result
        return result


def fisher(
    graph: Graph, values: Sequence[Node], batches: Sequence[list[Tensor]], keep: Callable[[Tensor], Tensor]
) -> dict[Node, list[Tensor]]:
    """Of each value the weights of its elements, batch by batch."""
    found: dict[Node, list[Tensor]] = {node: [] for node in values}
    for batch in batches:
        watcher = _Watched(graph, values)
        with torch.enable_grad():
            loss = own_labels(watcher.run(*batch, enable_io_processing=False), batch)
            nodes = list(watcher.found)
            gradients = torch.autograd.grad(loss, [watcher.found[n] for n in nodes])
        for node, gradient in zip(nodes, gradients, strict=True):
            found[node].append(keep(gradient.square()))
    for parts in found.values():
        mean = max(sum(float(p.double().sum()) for p in parts) / max(1, sum(p.numel() for p in parts)), 1e-30)
        for part in parts:
            part /= mean
    return found
