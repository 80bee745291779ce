"""Rules of one analysis or backend: what it does with an operator, where traits do not say enough.

RULES: Rules[Callable[[Node], str]] = Rules()

@RULES.of("conv", aten.addmm.default)      # families and operators
def product(node): ...

rule = RULES.find(node)                    # of the operator, else of its family, else None
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch.fx.node import Node

from graphopt.ir.ops import family
from graphopt.utils.errors import InputError

Rule = TypeVar("Rule")


class Rules(Generic[Rule]):
    """Rules by operator or family."""

    def __init__(self) -> None:
        self._rules: dict[Any, Rule] = {}

    def of(self, *keys: Any) -> Callable[[Rule], Rule]:
        """Register what is decorated (or handed to the result) for operators and families.

        Raises:
            InputError: one of them has a rule already.
        """

        def add(rule: Rule) -> Rule:
            for key in keys:
                if key in self._rules:
                    raise InputError(f"{key} has a rule already: {self._rules[key]}")
                self._rules[key] = rule
            return rule

        return add

    def find(self, node: Node) -> Rule | None:
        """The rule of a call: its operator's own, or its family's; None where there is none."""
        return self._rules.get(node.target) or self._rules.get(family(node))
