"""Remember what was learned piece by piece, so that work that was interrupted goes on where it stopped.

    journal = Journal.of(folder, lambda: fingerprint(graphs, data, options))
    if (found := journal.get("layer 3")) is None:
        journal.put("layer 3", found := {...})

Every task has a folder of its own inside of `folder`, named by its hash, so that one folder serves any number of tasks. Every
piece is a file, written whole or not at all, and read without unpickling anything but tensors, numbers and text.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError
from graphopt.utils.files import make_folder, write_tensors


class Journal:
    """Pieces of one task by name; remembers nothing where `folder` is None.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else make_folder(folder)

    @classmethod
    def of(cls, folder: str | Path | None, task: Callable[[], str]) -> Journal:
        """That of one task; its name is only asked for where there is a folder."""
        return cls(None if folder is None else Path(folder) / task())

    def get(self, name: str) -> dict[str, Any] | None:
        """A piece that was put before; None where there is none.

        Raises:
            InputError: the file is damaged.
        """
        if self.folder is None or not (path := self._path(self.folder, name)).is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"the checkpoint {path} is damaged; remove it to compute that part again") from error
        return found

    def put(self, name: str, piece: dict[str, Any]) -> None:
        if self.folder is not None:
            write_tensors(self._path(self.folder, name), piece)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name.replace(' ', '_')}.pt"


def fingerprint(graphs: Iterable[Graph], batches: Iterable[list[Tensor]], options: str) -> str:
    """A name for a task: the same graphs, weights, data and options give the same one."""
    digest = hashlib.sha256(options.encode())

    def add(name: str, tensor: Tensor) -> None:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())

    for graph in graphs:
        digest.update(f"\n{graph}".encode())
        for name, tensor in sorted(graph.module.state_dict().items()):
            add(name, tensor)
    for batch in batches:
        for tensor in batch:
            add("", tensor)
    return digest.hexdigest()[:16]
