"""What a method learns of one attention, by gradient descent to what softmax attention gave in the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.fitting.fit import Found, Parametrization
from graphopt.fitting.gradient import Learnable, Search, descend
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph


@dataclass(eq=False, kw_only=True)
class Parts(Parametrization):
    """The constants of a replacement. `parts`: those that are learned. `search`: how long and how fast."""

    parts: Sequence[Node] = field(repr=False)
    search: Search

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        learned = _Parts({node: graph.tensor(node) for node in self.parts})
        descend(graph, self.region, samples, learned, self.search)
        yield {str(node.target): tensor for node, tensor in learned.values(1.0).items()}

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {node: found[str(node.target)] for node in self.parts}

    def store(self, graph: Graph, found: Found) -> None:
        for node in self.parts:
            graph.put_constant(node, found[str(node.target)].detach().contiguous())


class _Parts(Learnable):
    """Constants as they are, learned in float32."""

    def __init__(self, parts: Mapping[Node, Tensor]) -> None:
        self.dtypes = {node: tensor.dtype for node, tensor in parts.items()}
        self.learned = {node: tensor.float().clone().requires_grad_() for node, tensor in parts.items()}

    def values(self, share: float) -> Mapping[Node, Any]:
        return {node: tensor.to(self.dtypes[node]) for node, tensor in self.learned.items()}

    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(tensor, 1.0) for tensor in self.learned.values()]
