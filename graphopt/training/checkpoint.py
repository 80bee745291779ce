"""Where a training that was interrupted goes on: one file, written whole or not at all, read without unpickling anything but
tensors, numbers and text.

It holds the graph's parameters and buffers, the optimizer, the average, the best state so far, what was measured, the place in
the data, and the state of the random numbers: a training that goes on computes what it would have computed.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from graphopt.ir.graph import Graph
from graphopt.passmanager.plain_options import plain as plain_options
from graphopt.training import processes
from graphopt.utils.errors import InputError
from graphopt.utils.files import make_folder, write_tensors

FILE = "training.pt"


class Checkpoint:
    """The file of one training in a folder; remembers nothing where `folder` is None.

    Args:
        task: what tells this training from another: its graph and options.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None, task: str) -> None:
        self.task = hashlib.sha256(task.encode()).hexdigest()
        self.path: Path | None = None
        if folder is not None:
            self.path = make_folder(folder) / FILE

    def read(self) -> dict[str, Any] | None:
        """What was kept; None where nothing was.

        Raises:
            InputError: it is damaged, or of another graph or other options.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            task = found["task"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(f"the checkpoint {self.path} is damaged; remove it to begin again") from error
        if task != self.task:
            raise InputError(
                f"the checkpoint {self.path} is of another training (its graph, data size or options differ); give another "
                "folder, or remove it to begin again"
            )
        return found

    def write(self, state: dict[str, Any]) -> None:
        if self.path is not None and processes.is_first():
            kept = {"task": self.task, **state}
            write_tensors(self.path, kept)

    def remove(self) -> None:
        """After the training has ended."""
        processes.wait()  # until the others have read it
        if self.path is not None and processes.is_first():
            self.path.unlink(missing_ok=True)


def task_of(graph: Graph, options: Any, batches: int) -> str:
    """The structure of a graph, not its weights; options (functions by name) but for the device and how often it saves;
    and how many batches an epoch has."""
    shapes = [(name, list(t.shape)) for name, t in graph.state_dict().items()]
    others = {name: value for name, value in vars(options).items() if name not in ("save_every", "device")}
    return f"{graph}\n{shapes}\n{plain_options(others)}\n{batches}"
