"""What `Prune` removes from a graph: the units of every group, to read, to edit, and to remove again without choosing anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from typing import Any

from graphopt.utils.pass_text import pass_text
from graphopt.utils.tables import Column, Table, numbers, plain

WIDTH = 140  # of the plan as text


@dataclass(frozen=True)
class Removal:
    """Of one group: the layer that makes its units first, which kind they are, how many there are, and which go."""

    name: str
    kind: str
    units: int
    gone: tuple[int, ...]


@dataclass(frozen=True)
class RemovalPlan:
    """Prints as a table.

    Attributes:
        groups: those that may lose units, and what they lose.
        compensate: the option of `Prune`.
    """

    groups: Sequence[Removal]
    compensate: str | None = None

    def layers(self, kind: str = "channels") -> dict[str, list[int]]:
        """Layer -> the units that go, for `Prune(layers=...)` with this kind alone."""
        return {escape(group.name): list(group.gone) for group in self.groups if group.kind == kind and group.gone}

    @property
    def text(self) -> str:
        """The passes that remove the same: to edit, and to give to `passes=` or `--passes`. One for each kind of units."""
        how: dict[str, Any] = {} if self.compensate is None else {"compensate": self.compensate}
        kinds = dict.fromkeys(group.kind for group in self.groups if group.gone)
        return ", ".join(pass_text("Prune", {"kinds": [kind], "layers": self.layers(kind), **how}) for kind in kinds)

    def __str__(self) -> str:
        rows = [[g.name, g.kind, str(g.units), str(g.units - len(g.gone)), _shown(g.gone)] for g in self.groups]
        return plain(
            [Table([Column("layer"), Column("units"), *numbers("before", "after"), Column("gone")], rows)], WIDTH
        )


def _shown(units: Sequence[int], most: int = 12) -> str:
    return ", ".join(map(str, units[:most])) + (f", ... ({len(units)})" if len(units) > most else "")
