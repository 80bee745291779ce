"""Rules of one analysis: what it does with an operator, where traits do not say enough.

RULES: Rules[Callable[[Node], str]] = Rules("interval")

@RULES.of("conv", aten.addmm.default)      # families and operators
def product(node): ...

rule = RULES.find(node)                    # of the operator, else of its family, else None

Operators of someone else bring theirs in their table entry, under the analysis's name: `OpInfo(..., rules={"interval": rule})`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch.fx.node import Node

from graphopt.ir.ops import RULES, info
from graphopt.utils.errors import InputError

Rule = TypeVar("Rule")


class Rules(Generic[Rule]):
    """Rules by operator or family.

    Args:
        analysis: whose they are, one of `graphopt.ir.ops.RULES`.
    """

    def __init__(self, analysis: str) -> None:
        assert analysis in RULES
        self.analysis = analysis
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
        """The rule of a call: that of its table entry, its operator's, or its family's; None where there is none."""
        known = info(node)
        own: Rule | None = known.rules.get(self.analysis)  # type: ignore[assignment]
        return own or self._rules.get(node.target) or self._rules.get(known.family)
