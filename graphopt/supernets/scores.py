"""What a sub-network scores with the weights that it shares: batch norms measure their statistics, then `evaluate` says.

Running statistics of a supernet are those of no sub-network in particular, so that each is judged with its own (Guo et al. 2020,
"Single Path One-Shot", section 3.4). Scores are kept in a file, if a folder is given, so that a search goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.execution.executor import Executor
from graphopt.ir.choices import assign, choices
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment
from graphopt.training.choices.sampled import settle_norms
from graphopt.utils.errors import InputError
from graphopt.utils.files import make_folder, write_atomically

Evaluate = Callable[[Callable[..., Any]], float]
FILE = "scores.json"


class Scores:
    """Scores of assignments, each computed once.

    Args:
        graph: a copy of it is set to one sub-network after the other.
        evaluate: takes a callable that behaves like the model; higher is better.
        data: batches of inputs for the statistics of batch norms.
        folder: where scores are kept; None: nowhere.

    Raises:
        InputError: `evaluate` returned no finite number, or the folder holds the scores of another supernet.
    """

    def __init__(
        self, graph: Graph, evaluate: Evaluate, data: Iterable[list[Tensor]], folder: str | Path | None
    ) -> None:
        self.graph, self.evaluate, self.data = graph.clone().eval(), evaluate, data
        self.choices = choices(self.graph)
        self.runner = Executor(self.graph)
        self.file = None if folder is None else Path(folder) / FILE
        self.mark = _mark(graph)
        self.known = self._read()

    def __call__(self, chosen: Assignment) -> float:
        if chosen not in self.known:
            assign(self.graph, chosen, known=self.choices)
            settle_norms(self.graph, self.data)
            with torch.no_grad():
                given = self.evaluate(self.runner)
            try:
                score = float(given)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"evaluate returned {given!r:.200}; it must be a finite number") from error
            if not math.isfinite(score):
                raise InputError(f"evaluate returned {score} for the options {chosen}; it must be a finite number")
            self.known[chosen] = score
            self._write()
        return self.known[chosen]

    def _read(self) -> dict[Assignment, float]:
        if self.file is None or not self.file.exists():
            return {}
        try:
            kept = json.loads(self.file.read_text())
            found = {tuple(map(int, options)): float(score) for options, score in kept["scores"]}
            same = kept["supernet"] == self.mark
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.file} is damaged; remove it to begin again") from error
        if not same:
            raise InputError(
                f"{self.file} holds scores of another supernet; give another folder, or remove it to begin again"
            )
        return found

    def _write(self) -> None:
        if self.file is not None:
            kept = {"supernet": self.mark, "scores": [[list(options), score] for options, score in self.known.items()]}
            write_atomically(make_folder(self.file.parent) / FILE, json.dumps(kept).encode())


def _mark(graph: Graph) -> str:
    """What tells supernets apart: their structure and weights."""
    found = hashlib.sha256(str(graph).encode())
    for name, tensor in sorted(graph.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
