"""A view of sums, differences, products and quotients: two operands, each a value of the graph or a number.

total = Binary.of(node)        # None where the node is none of these
total.kind                     # "add", "sub", "mul" or "div"
total.other(value)             # the operand beside a value
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import value
from graphopt.ir.ops import family

Operand = Node | int | float


@dataclass(frozen=True)
class Binary:
    """A call of two operands that meet element by element, in the order in which the operator takes them."""

    node: Node
    kind: str

    @classmethod
    def of(cls, node: Any) -> Binary | None:
        kind = family(node)
        return cls(node, kind) if kind in ("add", "sub", "mul", "div") else None

    @property
    def left(self) -> Operand:
        return self.operands[0]

    @property
    def right(self) -> Operand:
        return self.operands[1]

    @property
    def operands(self) -> tuple[Operand, Operand]:
        left, right = self.node.args[:2]
        return left, right  # type: ignore[return-value]

    @property
    def tensors(self) -> list[Node]:
        """The operands that are tensors, twice where both are one."""
        return [a for a in self.operands if isinstance(a, Node) and isinstance(value(a), Tensor)]

    @property
    def number(self) -> int | float | None:
        """The second operand where it is a number."""
        return self.right if isinstance(self.right, (int, float)) and not isinstance(self.right, bool) else None

    @property
    def is_of_one_value(self) -> bool:
        """Whether both operands are the same value."""
        return self.left is self.right

    def other(self, operand: Node) -> Operand | None:
        """The operand beside one of them; None where both are that one, or none is."""
        if operand not in self.operands or self.is_of_one_value:
            return None
        return self.right if self.left is operand else self.left
