"""Write hard-swish and SiLU as the product they are, for runtimes whose integer kernels know only the factors.

    hard_swish(x) = x * hard_sigmoid(x)         hard_sigmoid(x) = clamp(x + 3, 0, 6) / 6      (Howard et al. 2019, section 5.2)
    silu(x)       = x * sigmoid(x)                                                            (Elfwing et al. 2018)

A scalar that is added or multiplied becomes a constant tensor, because integer kernels read their operands as codes.

Keeps:  outputs, up to float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx.node import Node

from graphopt.ir.binary import Binary
from graphopt.ir.calls import is_float, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family
from graphopt.ir.passes import Change

GATES = {"hard_swish": aten.hardsigmoid.default, "silu": aten.sigmoid.default}


@dataclass(frozen=True)
class DecomposeActivations:
    """`activations`: which of `hard_swish` and `silu` to write out."""

    exact: ClassVar[bool] = True

    activations: frozenset[str] = frozenset(GATES)

    def __call__(self, graph: Graph) -> list[Change]:
        changes = []
        for node in graph.calls():
            kind = family(node)
            if kind in self.activations:
                changes.append(self.write_out(graph, node, str(kind)))
            elif kind in ("add", "mul") and is_float(node) and (scalar := Binary(node, kind).number) is not None:
                changes.append(self.make_constant(graph, node, scalar))
        return changes

    def write_out(self, graph: Graph, node: Node, kind: str) -> Change:
        gate = graph.call(GATES[kind], node.args[0], before=node)
        gate.meta["val"] = value(node)
        product = graph.call(aten.mul.Tensor, node.args[0], gate, before=node)
        product.meta["val"] = value(node)
        graph.replace(node, product)
        return Change(graph.site(product), f"{kind} written as a product")

    def make_constant(self, graph: Graph, node: Node, scalar: float) -> Change:
        constant = graph.add_constant(
            f"{node.name}_operand", torch.tensor(scalar, dtype=value(node).dtype), before=node
        )
        node.update_arg(1, constant)
        return Change(graph.site(node), f"operand {scalar:g} made a constant")
