"""What a checker finds."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """One thing that a target cannot do as it is.

    Attributes:
        rule: its short name. node: in the model. what: is wrong. remedy: what to do.
    """

    rule: str
    node: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.what} [{self.rule}]; {self.remedy}"
