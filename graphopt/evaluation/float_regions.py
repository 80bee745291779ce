"""Float regions of a quantized model: what computes in float between integers, why, and what would fix it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class FloatReason(NamedTuple):
    """Why an operator computes in float.

    Attributes:
        rule: its short name. why: what is wrong with this operator. remedy: what to do.
        fix: the rewrite that does it, one of the names that `graphopt audit --fix` prints; empty where there is none.
    """

    rule: str
    why: str
    remedy: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.why} [{self.rule}]; {self.remedy}"


@dataclass(frozen=True)
class FloatNode:
    """An operator that computes in float: its name in the file, its type, its multiply-accumulates, why."""

    name: str
    operator: str
    macs: int
    reason: FloatReason


@dataclass(frozen=True)
class FloatRegion:
    """Operators in float that hand values to each other.

    Attributes:
        nodes: in execution order.
        conversions: how many values are converted from codes into it, and from it to codes.
    """

    nodes: tuple[FloatNode, ...]
    conversions: int

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def reasons(self) -> list[FloatReason]:
        """Of its operators, one for each rule."""
        return list({node.reason.rule: node.reason for node in self.nodes}.values())

    def to_dict(self) -> dict[str, Any]:
        nodes = [{**asdict(node), "reason": node.reason._asdict()} for node in self.nodes]
        return {"macs": self.macs, "conversions": self.conversions, "nodes": nodes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FloatRegion:
        nodes = (FloatNode(**{**node, "reason": FloatReason(**node["reason"])}) for node in data["nodes"])
        return cls(tuple(nodes), data["conversions"])
