"""A teacher's answers on disk: of a model behind an API, or of one that is slow to run.

    record(lambda batch: client.classify(batch), images, "soft.npy")         once; one row for each sample, in order
    train(graph, (images, labels), compress=[Response(Recorded("soft.npy"))])

    train(graph, (images, labels), compress=[Response(Cached(teacher, "cache", samples=len(images)))])      as they come up

Rows are found by a sample's place in the data. It is known of tensors, of lists of batches, of loaders that do not shuffle, and
where batches are dictionaries with the samples' numbers under `index`. Files are mapped into memory, not read whole. Answers
fit views that do not change: with random augmentation they are those of another image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.training.batches import Batch
from graphopt.training.distillation.teachers import Member, Network
from graphopt.training.losses import output
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_writable, write_atomically

KINDS = ("logits", "probabilities")


def record(teacher: Callable[[Any], Any], inputs: Any, path: str | Path, *, batch_size: int = 64) -> Path:
    """Ask a teacher for its answer to every sample, in order, and write them to a `.npy` file, [samples, classes] float32.

    Args:
        teacher: a function (or module, in eval mode) of one batch; returns logits or probabilities [N, classes].
        inputs: a tensor, which is cut into batches, or batches of inputs in the order of the training data.
        path: of the file; it appears whole or not at all.

    Raises:
        InputError: no samples, answers of changing width, or a place that cannot be written.
    """
    target = check_writable(path)
    parts: list[np.ndarray[Any, Any]] = []
    with torch.no_grad():
        for batch in _batches(inputs, batch_size):
            answer = teacher(batch)
            found = np.asarray(answer if isinstance(answer, np.ndarray) else output(answer).cpu(), dtype=np.float32)
            if parts and found.shape[1:] != parts[0].shape[1:]:
                raise InputError(
                    f"the teacher answers {list(found.shape)} after {list(parts[0].shape)}; classes must stay the same"
                )
            parts.append(found)
    if not parts:
        raise InputError("there is nothing to record: no batch of inputs")
    write_atomically(target, lambda place: _save(place, np.concatenate(parts)))
    return target


class Recorded(Member):
    """Answers in a file; see `record`.

    Args:
        path: a `.npy` file, [samples, classes].
        kind: whether they are `logits` or `probabilities`.

    Raises:
        InputError: no such file, another shape, values that are no probabilities; with the first batches: a sample that has no
            row, other classes than the student's, a data set of another size.
    """

    def __init__(self, path: str | Path, *, kind: str = "logits") -> None:
        if kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.path, self.kind = Path(path), kind
        try:
            self.rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is no readable .npy file of recorded answers; write one with record(...)"
            ) from error
        if self.rows.ndim < 2 or not len(self.rows):
            raise InputError(f"{path} has shape {list(self.rows.shape)}; recorded answers are [samples, classes]")
        if kind == "probabilities":
            self._check_probabilities()

    def _check_probabilities(self) -> None:
        some = np.asarray(self.rows[:256], dtype=np.float64)
        if some.min() < 0 or np.abs(some.sum(1) - 1).max() > 1e-2:
            raise InputError(
                f"{self.path} does not hold probabilities (rows of numbers >= 0 that add up to 1); give kind='logits'"
            )

    def example(self, student: Graph) -> Tensor:
        return self._answers(np.asarray(self.rows[:1]))

    def run(self, batch: Batch, nodes: Sequence[Node], gradients: bool) -> tuple[Tensor, Mapping[Node, Any]]:
        places = known(batch)
        count = len(self.rows)
        if batch.total is not None and batch.total != count:
            raise InputError(
                f"{self.path} has answers to {count} samples, the training data are {batch.total}; record them anew"
            )
        if int(places.max()) >= count:
            raise InputError(
                f"{self.path} has answers to {count} samples, there is none to number {int(places.max())}; record them anew"
            )
        return self._answers(self.rows[places.numpy()]).to(batch.inputs[0].device), {}

    def _answers(self, rows: np.ndarray[Any, Any]) -> Tensor:
        found = torch.from_numpy(np.array(rows, dtype=np.float32))
        return found if self.kind == "logits" else found.clamp(min=1e-8).log()


class Cached(Network):
    """A teacher whose answers are written to a folder as they come up, and read from there ever after.

    Args:
        source: a module or graph; the file is named after its weights, so that another teacher has another file.
        folder: is made where there is none.
        samples: how many there are.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, source: nn.Module | Graph, folder: str | Path, *, samples: int) -> None:
        super().__init__(source)
        self.folder, self.samples, self.states = check_writable(folder), samples, source.state_dict()
        self.rows: np.memmap[Any, Any] | None = None
        self.shape: tuple[int, ...] = ()

    def example(self, student: Graph) -> Tensor:
        answer, _ = super().run(Batch(student.example.tensors(), None), (), False)
        self.shape = tuple(answer.shape[1:])
        return answer

    def run(self, batch: Batch, nodes: Sequence[Node], gradients: bool) -> tuple[Tensor, Mapping[Node, Any]]:
        if nodes or gradients:
            return super().run(batch, nodes, gradients)
        places = known(batch)
        if int(places.max()) >= self.samples:
            raise InputError(f"the cache is for {self.samples} samples, there is a number {int(places.max())}")
        if self.rows is None:
            self.rows = self._open(self.shape)
        found = np.array(self.rows[places.numpy()])
        if np.isnan(found).any():
            answers, _ = super().run(batch, (), False)
            self.rows[places.numpy()] = answers.cpu().numpy()
            return answers, {}
        return torch.from_numpy(found).to(batch.inputs[0].device), {}

    def _open(self, shape: Sequence[int]) -> np.memmap[Any, Any]:
        """The file, with NaN where nothing is known yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_fingerprint(self.states)}-{self.samples}.npy"
        if not path.is_file():
            write_atomically(
                path, lambda place: _save(place, np.full((self.samples, *shape), np.nan, dtype=np.float32))
            )
        opened: np.memmap[Any, Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
        return opened


def known(batch: Batch) -> Tensor:
    """Which samples a batch has.

    Raises:
        InputError: that is not known.
    """
    if batch.samples is None:
        raise InputError(
            "recorded answers need to know which samples a batch has; train on tensors, on a list of batches, on a loader that "
            "does not shuffle, or on dictionaries with the samples' numbers under 'index'"
        )
    return batch.samples.long().flatten()


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    if isinstance(inputs, (Tensor, np.ndarray)):
        return iter(torch.split(torch.as_tensor(inputs), size))
    if not isinstance(inputs, Iterable):
        raise InputError(f"inputs are a {type(inputs).__name__}; give a tensor, or batches")
    return iter(inputs)


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _save(path: Path, rows: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, rows)
