"""What the runner says of one pass it ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One pass: its name, its options as plain data, its changes as (site, what), and the graph after it.

    `sqnr_db` compares the outputs on the example with those of the float original; None where that was not done, or cannot be, as
    with codes in the place of features. `short` tells what was asked for and is out of reach.
    """

    name: str
    options: dict[str, Any]
    changes: Sequence[tuple[str, str]]
    seconds: float
    parameters: int
    macs: int
    weight_bytes: int
    sqnr_db: float | None = None
    short: list[str] = field(default_factory=list)
