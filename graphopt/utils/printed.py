"""Results that print, and that are kept as JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from graphopt.utils import terminal
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

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises `InputError` where `path` cannot be written."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_atomically(path, text.encode() + b"\n")
