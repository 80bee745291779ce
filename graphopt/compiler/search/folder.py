"""A search on disk: what was measured, planned and made, so that an interrupted one goes on.

    folder/
      search.json       the task's fingerprint, times of whole networks, plans, figures of points
      original.graph    the captured model
      point_00/ ...     artifacts

`search.json` is replaced as a whole after every step; nothing that is read is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.searching import Assignment
from graphopt.utils.errors import InputError
from graphopt.utils.files import make_folder, write_atomically

FILE, VERSION = "search.json", 1


@dataclass
class Folder:
    """The state of a search.

    Attributes:
        task: a fingerprint of everything that the search depends on.
        times: of whole networks, as shares of the float original's.
        plans: by the text of a budget: recipe, damage and words; or the reason why nothing meets it.
        points: by the same, the figures of what was made.

    Raises:
        InputError: the folder holds another search, or cannot be read.
    """

    path: Path
    task: str
    times: dict[Assignment, float] = field(default_factory=dict)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, task: str) -> Folder:
        place = make_folder(path)
        if not (place / FILE).exists():
            return cls(place, task)
        try:
            found = json.loads((place / FILE).read_text())
            state = {name: dict(found[name]) for name in ("plans", "points")}
            times = {tuple(map(int, assignment)): float(share) for assignment, share in found["times"]}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{place / FILE} cannot be read ({error}); choose another folder, or remove it") from None
        if (found.get("version"), found.get("task")) != (VERSION, task):
            raise InputError(
                f"{place} holds a search of another model, target, data, machine or kind of budget; choose another folder, "
                "or remove it"
            )
        return cls(place, task, times, **state)

    def save(self) -> None:
        times = [[list(assignment), share] for assignment, share in self.times.items()]
        state = {"version": VERSION, "task": self.task, "times": times, "plans": self.plans, "points": self.points}
        write_atomically(self.path / FILE, json.dumps(state, indent=1).encode())

    def see(self, assignment: Assignment, share: float) -> None:
        """A whole network was timed."""
        self.times[assignment] = share
        self.save()

    def planned(self, budget: Mapping[str, float], plan: dict[str, Any]) -> None:
        self.plans[key(budget)] = plan
        self.save()

    def made(self, budget: Mapping[str, float], figures: dict[str, Any]) -> None:
        self.points[key(budget)] = figures
        self.save()


def key(budget: Mapping[str, float]) -> str:
    """A budget as a text."""
    return json.dumps(dict(sorted(budget.items())))
