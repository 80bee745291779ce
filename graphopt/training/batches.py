"""Training data, whatever form they have: batches of inputs and of targets, in the same order whenever an epoch is repeated.

    Batches((images, labels), graph, batch_size=64)     tensors or arrays, shuffled anew in each epoch
    Batches(loader, graph)                              a DataLoader, or any iterable of batches that can be gone through again
    Batches(lambda: stream(), graph)                    a function that starts a new iterator

A batch is (inputs, targets), in a tuple or list, or a dictionary with what the graph takes by name, and targets under `labels`
or `targets` (and, for recorded answers, the samples' numbers under `index`). What has no targets gives None, which is for
distillation alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from graphopt.data.batches import as_tensor, inputs, to_tensors
from graphopt.ir.graph import Graph
from graphopt.training import processes
from graphopt.utils.errors import InputError

TARGETS = ("labels", "label", "targets", "target", "y")  # keys of dictionaries
SAMPLES = "index"


class Batch(NamedTuple):
    """One batch.

    Attributes:
        inputs: tensors in the order of the graph.
        targets: as the loss takes them: a tensor, several, or None.
        samples: which samples of the data these are, by their place there; None where that is not known (a loader that shuffles).
        total: how many samples the data have; None where that is not known.
        given: the batch as the data give it; a teacher may take another part of it.
    """

    inputs: list[Tensor]
    targets: Any
    samples: Tensor | None = None
    total: int | None = None
    given: Any = None


class Batches:
    """See the head of this file.

    Args:
        source: the data.
        graph: what the inputs have to fit.
        batch_size: of tensors that are cut into batches.
        seed: of their order; that of a DataLoader follows `torch.manual_seed`, which `train` sets for every epoch.

    Raises:
        InputError: nothing in there, an iterator that can be gone through only once, or a first batch that does not fit.
    """

    def __init__(self, source: Any, graph: Graph, *, batch_size: int = 64, seed: int = 0) -> None:
        self.takes, self.seed, self.size = inputs(graph), seed, batch_size
        self.tensors = tensors_of(source)
        self.source = source
        if self.tensors is None and isinstance(source, Iterator):
            raise InputError(
                "the training data is an iterator, which is empty after one epoch; give a DataLoader, a list, or a function that "
                "returns a new iterator"
            )
        if self.tensors is None and not (callable(source) or isinstance(source, Iterable)):
            raise InputError(
                f"the training data is a {type(source).__name__}; give (inputs, targets), a loader or a function"
            )
        self.length = self._length()

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self.length

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch; the same number gives the same order."""
        torch.manual_seed(self.seed + number)
        if self.tensors is not None:
            x, y = self.tensors
            order = torch.randperm(len(x))
            for places in map(processes.part, torch.split(order, self.size)):
                yield self._batch((x[places], None if y is None else y[places]), 1)._replace(
                    samples=places, total=len(x)
                )
            return
        first = 0 if keeps_order(self.source) else None
        for count, batch in enumerate(self._open(), 1):
            found = self._batch(batch, count)
            if found.samples is None and first is not None:
                found = found._replace(samples=torch.arange(first, first := first + len(found.inputs[0])))
            yield found

    def inputs(self) -> Iterator[list[Tensor]]:
        """Input tensors of the first epoch, batch by batch."""
        return (batch.inputs for batch in self.epoch(0))

    def _open(self) -> Iterator[Any]:
        source: Any = self.source() if callable(self.source) and not isinstance(self.source, Iterable) else self.source
        return iter(source)

    def _length(self) -> int:
        if self.tensors is not None:
            count = -(-len(self.tensors[0]) // self.size)
        elif isinstance(self.source, Sized):
            count = len(self.source)
        else:
            count = sum(1 for _ in self._open())
        if not count:
            raise InputError("the training data is empty; give at least one batch")
        return count

    def _batch(self, batch: Any, number: int) -> Batch:
        where = f"batch {number} of the training data"
        if isinstance(batch, Mapping):
            taken = {n for i in self.takes for n in i.keys}
            key = next((k for k in TARGETS if k in batch and k not in taken), None)
            samples = as_tensor(batch[SAMPLES]) if SAMPLES in batch and SAMPLES not in taken else None
            targets = None if key is None else _target(batch[key])
            return Batch(to_tensors(batch, self.takes, where), targets, samples, given=batch)
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], (tuple, list, Mapping)):
            return Batch(to_tensors(batch[0], self.takes, where), _target(batch[1]), given=batch)
        if isinstance(batch, (tuple, list)):
            count = len(self.takes)
            rest = [_target(each) for each in batch[count:] if each is not None]
            targets = None if not rest else rest[0] if len(rest) == 1 else tuple(rest)
            return Batch(to_tensors(tuple(batch[:count]), self.takes, where), targets, given=batch)
        return Batch(to_tensors(batch, self.takes, where), None, given=batch)


def keeps_order(source: Any) -> bool:
    """Whether every pass over some data gives the same samples in the same order, as far as can be known."""
    sampler = getattr(source, "sampler", None)
    return isinstance(source, (list, tuple)) or isinstance(sampler, SequentialSampler)


@dataclass(frozen=True)
class Inputs:
    """The inputs among training data, as often as they are wanted."""

    batches: Batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        return self.batches.inputs()


def tensors_of(source: Any) -> tuple[Tensor, Tensor | None] | None:
    """Data that are one tensor of inputs, alone or with one of targets of the same length."""
    parts = source if isinstance(source, tuple) and len(source) == 2 else (source,)
    found = [
        tensor for part in parts if isinstance(part, (Tensor, np.ndarray)) and (tensor := as_tensor(part)) is not None
    ]
    if len(found) < len(parts):
        return None
    if len(found) == 2 and len(found[0]) != len(found[1]):
        raise InputError(f"there are {len(found[0])} inputs and {len(found[1])} targets; there must be one for each")
    return found[0], found[1] if len(found) == 2 else None


def _target(value: Any) -> Any:
    return as_tensor(value) if isinstance(value, np.ndarray) else value
