"""Results that print, and that are kept as JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from graphopt.utils import terminal, web
from graphopt.utils.files import write_atomically
from graphopt.utils.tables import Block, plain


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
        """Write it whole or not at all: as one page of HTML where the name ends in `.html`, else as JSON.

        Raises:
            InputError: the place cannot be written.
        """
        if Path(path).suffix.lower() in (".html", ".htm"):
            text = self.page()
        else:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_atomically(path, text.encode())
