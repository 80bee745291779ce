"""Results that print, and that are kept as JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from graphopt.utils import terminal, web
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_file, write_atomically
from graphopt.utils.tables import Block, plain

FORMS = {".json": "json", ".html": "html", ".htm": "html", ".txt": "text", "": "json"}  # by the ending of a file's name


class Printed(ABC):
    """A result with a text: `str(result)`, `result.print()`, and `result.save(path)`."""

    width: ClassVar[int] = 120  # characters of a line of plain text

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """What is shown of it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""

    def __str__(self) -> str:
        return plain(self.blocks(), self.width)

    def print(self) -> None:
        """Show it: in colour on a terminal, as plain text in a pipe."""
        terminal.show(self.blocks(), self.width)

    def page(self) -> str:
        """One page of HTML that needs nothing else."""
        return web.page(str(self).strip().split("\n", 1)[0], [web.blocks(self.blocks())])

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return web.fragment(self.blocks())

    def save(self, path: str | Path) -> None:
        """Write it whole or not at all: as JSON, one page of HTML or plain text, as the name ends (`FORMS`).

        Raises:
            InputError: the name ends in something else, or the place cannot be written.
        """
        check_place(path)
        form = FORMS[Path(path).suffix.lower()]
        if form == "html":
            text = self.page()
        elif form == "text":
            text = str(self)
        else:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_atomically(path, (text.rstrip("\n") + "\n").encode())


def check_place(path: str | Path) -> None:
    """Make sure that `save` can write there; cheap, so call it early.

    Raises:
        InputError: as `Printed.save`.
    """
    if Path(path).suffix.lower() not in FORMS:
        known = ", ".join(ending for ending in FORMS if ending)
        raise InputError(f"what to write into {path} its name does not tell; let it end in one of {known}")
    check_file(path)
