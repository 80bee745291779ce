"""Parts of a graph that are fitted together: a layer, a chain of layers, a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.reference import unquantized
from graphopt.ir.calls import value
from graphopt.ir.layer import Layer
from graphopt.ir.shapes import is_free


@dataclass(frozen=True)
class Region:
    """Part of a graph with one result.

    Attributes:
        inputs: the values it reads from outside; constants are no inputs.
        nodes: its calls in execution order, those on its constants (such as quantizers of weights) included.
        output: its result, the last of the calls.
    """

    inputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    output: Node

    @classmethod
    def between(cls, inputs: Sequence[Node], output: Node) -> Region:
        """The calls that lead from some values to another one."""
        found, todo = set[Node](), [output]
        while todo:
            node = todo.pop()
            if node in found or node in inputs or node.op != "call_function":
                continue
            found.add(node)
            todo.extend(node.all_input_nodes)
        return cls(tuple(inputs), tuple(sorted(found)), output)

    @classmethod
    def of_layer(cls, layer: Layer) -> Region:
        return cls.between([layer.input], layer.node)

    @property
    def first(self) -> Node:
        """The first of its calls that reads one of its inputs."""
        return next(node for node in self.nodes if any(source in self.inputs for source in node.all_input_nodes))

    @property
    def by_sample(self) -> bool:
        """Whether samples can be taken one by one: inputs and result have one free first dimension (a table has none), and no
        other, for batches of different sizes have no samples in common."""
        nodes = (*self.inputs, self.output)
        if any(is_free(size) for node in nodes for size in value(unquantized(node)).shape[1:]):
            return False
        sizes = [_first_size(node) for node in nodes]
        return sizes[0] is not None and all(size == sizes[0] for size in sizes)

    def run(self, executor: Executor, inputs: Sequence[Tensor]) -> Tensor:
        """Its result for some values of its inputs."""
        result: Tensor = executor.run([self.output], dict(zip(self.inputs, inputs, strict=True)))[self.output]
        return result


def _first_size(node: Node) -> Any:
    """The free first dimension of a value as an expression; None where there is none."""
    found = value(unquantized(node))
    return found.shape[0].node.expr if found.dim() and is_free(found.shape[0]) else None
