"""Calibration data: from whatever the user has to batches of input tensors, as often as they are needed.

    Calibration(images, graph)                       a tensor or array: taken 32 samples at a time
    Calibration((images, labels), graph)             labels are dropped
    Calibration([batch, batch, ...], graph)          tensors, (x, y) pairs, tuples of inputs, or dictionaries by name
    Calibration(loader, graph)                       a DataLoader, or any other iterable of batches
    Calibration(lambda: stream(), graph)             a function that starts a new iterator for every pass
    Calibration(stream(), graph)                     a one-shot iterator: good for a single pass
    Calibration("photos/", graph)                    a folder, file or function by name; see graphopt.data.loaders

Only one batch is held at a time, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from graphopt.data.batches import BATCH, Input, Signature, as_tensor, check_sizes, inputs, misfit, to_tensors
from graphopt.data.loaders import Named
from graphopt.data.preprocessing import Preprocessing
from graphopt.data.rebatching import Rebatching
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

_NOTHING = object()
HELD_OUT = 8  # one batch of so many is held out


class Calibration:
    """Calibration batches for one graph; iterating yields lists of tensors in `graph.input_names` order.

    A graph with a fixed batch size gets batches of exactly that size, whatever the source's batches are; where it is free, those
    of fewer than four samples are joined.

    Attributes:
        synthetic: whether these are made-up inputs (see `synthetic`) rather than the user's data.
        notes: remarks for the report, for instance about samples left out.
        samples: how many samples the last complete pass gave.
        preprocessing: what was done to photos and raw pixels; None where the source gave the model's inputs.
    """

    def __init__(self, source: Any, graph: Graph | Signature, *, synthetic: bool = False) -> None:
        """Take `source` (see the head of this file) and look at its first batch.

        Raises:
            InputError: the source is empty or of an unknown kind, or its first batch does not fit the graph.
        """
        if isinstance(source, (str, Path)):
            source = Named(str(source))
        self.preprocessing: Preprocessing | None = None
        if isinstance(source, Named):
            source, self.preprocessing = source.load(graph)
        self.inputs = inputs(graph)
        self.synthetic = synthetic
        self.notes: list[str] = []
        self._noted: list[str] = getattr(source, "notes", [])  # what the source says after a pass
        self.samples = 0
        self._free = [s for s in graph.free_sizes if s is not graph.batch] if isinstance(graph, Graph) else []
        self._rebatching = Rebatching.of(graph, self.inputs, self._note)
        self._open = _opener(source, self.inputs)
        self._once: Iterator[Any] | None = None
        self._batches_known = _length(source, self.inputs)
        self._takes: Callable[[int], bool] = _all
        self._passes = 0
        self._look(one_shot=isinstance(source, Iterator))

    @property
    def one_shot(self) -> bool:
        """Whether the data can be gone through only once."""
        return self._once is not None

    def hold_out(self, every: int = HELD_OUT) -> tuple[Calibration, Calibration | None]:
        """Two parts of the data: what choices are made on, and what they are judged on.

        Every `every`-th batch is held out, where the number of batches is known and at least that; else nothing is.
        """
        if self.synthetic or self.one_shot or self._batches_known < every:
            return self, None
        parts = copy.copy(self), copy.copy(self)
        parts[0]._takes, parts[1]._takes = (lambda number: number % every != 0), (lambda number: number % every == 0)
        return parts

    def _look(self, one_shot: bool) -> None:
        """Check the first batch before any work is done with it."""
        stream = self._open()
        first = next(stream, _NOTHING)
        if first is _NOTHING:
            hint = "; it may be an iterator that was used up before" if one_shot else ""
            raise InputError(f"the calibration data is empty{hint}; give at least one batch")
        self._tensors(first, 1)
        if one_shot:
            self._once = chain([first], stream)

    def _tensors(self, batch: Any, number: int) -> list[Tensor]:
        tensors = to_tensors(batch, self.inputs, _where(number))
        check_sizes(self._free, self.inputs, tensors, _where(number))
        return tensors

    def __iter__(self) -> Iterator[list[Tensor]]:
        self._passes += 1
        if self._once is not None and self._passes > 1:
            raise InputError(
                "the calibration data is a one-shot iterator and was used up by the first pass; "
                "give a list, a DataLoader, or a function that returns a new iterator"
            )
        return self._count(self._rebatching(self._batches()))

    def _batches(self) -> Iterator[list[Tensor]]:
        number = 0
        for batch in self._once or self._open():
            number += 1
            if self._takes(number):
                yield self._tensors(batch, number)
        if number == 0:
            raise InputError(
                f"the calibration data was empty in pass {self._passes}; "
                "the function must return a new iterator each time it is called"
            )

    def _count(self, batches: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        samples = 0
        for tensors in batches:
            samples += next((t.shape[0] for i, t in zip(self.inputs, tensors, strict=True) if i.batched), 1)
            yield tensors
        self.samples = samples
        self.notes += [note for note in self._noted if note not in self.notes]

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def synthetic(graph: Graph, batches: int = 8, seed: int = 0, size: int = BATCH) -> Calibration:
    """Made-up inputs for when there is no calibration data: the example's own values, drawn at random.

    `size` samples a batch, where the graph leaves that open.

    Drawing keeps types, ranges and rough distribution, so token ids stay in the vocabulary and masks stay masks. A
    constant floating-point example becomes standard normal.
    """
    example, takes = graph.example.tensors(), inputs(graph)
    shapes = [
        (size, *t.shape[1:]) if i.batched and graph.dynamic_batch else t.shape
        for i, t in zip(takes, example, strict=True)
    ]

    def stream() -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(batches):
            yield tuple(_draw(t, shape, generator) for t, shape in zip(example, shapes, strict=True))

    return Calibration(stream, graph, synthetic=True)


def _draw(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    values = example.detach().cpu().flatten()
    if not len(values):
        return example
    if example.is_floating_point() and bool((values == values[:1]).all()):
        return torch.randn(shape, generator=generator).to(example.dtype)
    return values[torch.randint(len(values), tuple(shape), generator=generator)]


def _where(number: int) -> str:
    return f"batch {number} of the calibration data"


def _opener(source: Any, takes: list[Input]) -> Callable[[], Iterator[Any]]:
    """A function that starts one pass over the batches of any kind of source."""
    arrays = _arrays(source, takes)
    if arrays is not None:
        return lambda: _split(*arrays)
    if isinstance(source, (nn.Module, bytes)) or source is None:
        raise _unknown(source)
    if isinstance(source, Iterator):
        return lambda: source
    if isinstance(source, Iterable):
        return lambda: iter(source)
    if callable(source):
        return lambda: _opener(source(), takes)()
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):  # a map-style data set
        return lambda: (source[i] for i in range(len(source)))
    raise _unknown(source)


def _length(source: Any, takes: list[Input]) -> int:
    """How many batches a source has, the same ones in every pass; 0 where it does not say, or shuffles."""
    if (arrays := _arrays(source, takes)) is not None:
        return sum(1 for _ in _split(*arrays))
    if isinstance(source, Iterator) or isinstance(getattr(source, "sampler", None), RandomSampler):
        return 0
    try:
        return len(source) if isinstance(source, Sized) else 0
    except TypeError:  # a DataLoader of a data set without a length
        return 0


def _all(number: int) -> bool:
    return True


def _unknown(source: Any) -> InputError:
    found = type(source).__name__
    return InputError(f"calibration data must be tensors, a DataLoader or another iterable of batches, got {found}")


def _arrays(source: Any, takes: list[Input]) -> tuple[list[Input], list[Any]] | None:
    """The inputs of the whole data set as one array each; None where `source` is a series of batches."""
    if isinstance(source, (Tensor, np.ndarray)):
        return takes, _whole([source], takes)
    if isinstance(source, Mapping):
        found = [next((source[k] for k in i.keys if k in source), None) for i in takes]
        if any(f is None for f in found):
            to_tensors(source, takes, "the calibration data")  # raises, or finds a single unnamed input
            found = [next(v for v in source.values() if (t := as_tensor(v)) is not None and not misfit(takes[0], t))]
        return takes, _whole(found, takes)
    bare = isinstance(source, (tuple, list)) and all(isinstance(s, (Tensor, np.ndarray)) for s in source)
    if not bare or len(source) < max(len(takes), 2):
        return None
    if len(takes) > 1:  # a single tensor cannot be a batch of this model, so these are its inputs
        return takes, _whole(list(source[: len(takes)]), takes)
    data, *labels = source
    rank = len(takes[0].shape)
    if data.ndim == rank and all(y.ndim not in (0, rank) and len(y) == len(data) for y in labels):
        return takes, _whole([data], takes)
    return None


def _whole(arrays: list[Any], takes: list[Input]) -> list[Any]:
    """The arrays, after looking at types and shapes; values are looked at batch by batch later."""
    for i, array in zip(takes, arrays, strict=False):
        sample = as_tensor(array[:1] if array.ndim else array)
        if sample is None:
            raise InputError(f"the calibration data for input {i.name!r} is an array of {array.dtype}; give numbers")
        if array.ndim <= 1 or array.ndim == len(i.shape) - 1:
            sample = as_tensor(array)  # so that the message shows the shape the user gave
        if sample is not None and (reason := misfit(i, sample)):
            raise InputError(f"the calibration data does not fit the model: {reason}")
    return arrays


def _split(takes: list[Input], arrays: list[Any]) -> Iterator[list[Any]]:
    length = next((len(a) for i, a in zip(takes, arrays, strict=False) if i.batched), 1)
    for start in range(0, length, BATCH):
        yield [a[start : start + BATCH] if i.batched else a for i, a in zip(takes, arrays, strict=False)]
