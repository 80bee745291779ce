"""What a training did, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table


@dataclass(frozen=True)
class Epoch:
    """One epoch: the mean of the loss, what `evaluate` gave behind it, and seconds.

    The first one, number 0, stands for the graph as it was.
    """

    number: int
    loss: float | None
    score: float | None
    seconds: float


@dataclass
class TrainingReport(Printed):
    """See `graphopt.train`.

    Attributes:
        epochs: in order.
        kept: the number of the epoch whose state the graph has.
        steps: of the optimizer.
        notes: remarks.
    """

    epochs: list[Epoch] = field(default_factory=list)
    kept: int = 0
    steps: int = 0
    notes: Sequence[str] = ()

    @property
    def gain(self) -> float | None:
        """What training gained of the score; None where nothing was evaluated."""
        scores = {epoch.number: epoch.score for epoch in self.epochs}
        first, last = scores.get(0), scores.get(self.kept)
        return None if first is None or last is None else last - first

    def blocks(self) -> list[Block]:
        rows = [
            [
                str(e.number) if e.number else "before",
                "" if e.loss is None else f"{e.loss:.4f}",
                "" if e.score is None else f"{e.score:.4g}",
                f"{e.seconds:.1f}",
                "kept" if e.number == self.kept else "",
            ]
            for e in self.epochs
        ]
        columns = [Column("epoch"), *(Column(c, number=True) for c in ("loss", "score", "seconds")), Column("")]
        return [Line(f"training, {self.steps} steps", "title"), Table(columns, rows), *(Line(n) for n in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
