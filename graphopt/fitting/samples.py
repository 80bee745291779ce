"""What a region is fitted on: its inputs and the result wanted of it, with some samples held out to judge the fit by.

Every eighth sample is held out, from the first one on; where samples cannot be told apart (a graph of a fixed batch size, a
table among the inputs), every eighth batch. A single sample or batch cannot be divided: it is fitted on and judged by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

EVERY = 8  # samples, of which one is held out
SMALL = 2**23  # bytes of the largest value computed at a time: the allocator maps larger ones anew


class Part(NamedTuple):
    """Some samples.

    Attributes:
        inputs: one tensor for each input of the region.
        wanted: the result.
        importance: by how much the squared error of each element of the result counts; None: all alike.
        given: what the region gives as it is; None: not known.
    """

    inputs: list[Tensor]
    wanted: Tensor
    importance: Tensor | None = None
    given: Tensor | None = None

    def error(self, result: Tensor) -> Tensor:
        """Mean square of what a result is off, weighted by importance."""
        lost = (result - self.wanted).square()
        return (lost if self.importance is None else lost * self.importance).mean()

    def map(self, function: Callable[[Tensor], Tensor]) -> Part:
        """The same function of all tensors."""
        importance, given = (None if value is None else function(value) for value in self[2:])
        return Part([function(value) for value in self.inputs], function(self.wanted), importance, given)


class Samples:
    """All samples of a region, kept batch by batch.

    Attributes:
        parts: one for each batch.
        by_sample: whether single samples can be taken out of a batch.
        held, fitted: the numbers of the samples (or batches) that are held out, and of the others.
    """

    def __init__(self, parts: Sequence[Part], *, by_sample: bool) -> None:
        self.parts, self.by_sample = parts, by_sample
        self._places = [(b, i) for b, part in enumerate(parts) for i in range(len(part.wanted) if by_sample else 1)]
        every = range(len(self._places))
        self.held = list(every[::EVERY])
        self.fitted = [number for number in every if number % EVERY] or list(every)

    @cached_property
    def power(self) -> float:
        """Mean square of what is wanted of all samples."""
        squares = [part.wanted.double().square().mean() for part in self.parts]
        return max(float(torch.stack(squares).mean()), 1e-12)

    @cached_property
    def _bytes(self) -> int:
        """Of one sample of the largest value."""
        return max(t.nbytes // max(len(t), 1) for part in self.parts for t in (*part.inputs, part.wanted)) or 1

    def take(self, picked: Sequence[int]) -> Part:
        """Samples by number, in this order; one whole batch where they cannot be told apart."""
        if not self.by_sample:
            return self.parts[self._places[picked[0]][0]]
        places = [self._places[number] for number in picked]
        some = [self.parts[b].map(lambda value, i=i: value[i]) for b, i in places]  # type: ignore[misc]
        inputs = [torch.stack(values) for values in zip(*(part.inputs for part in some), strict=True)]
        wanted = torch.stack([part.wanted for part in some])
        return Part(inputs, wanted, _stacked([p.importance for p in some]), _stacked([p.given for p in some]))

    def cut(self, picked: Sequence[int], size: int | None = None) -> list[list[int]]:
        """The numbers in groups of `size`, or of as many as are worth computing at a time."""
        size = size if size is not None else max(1, SMALL // self._bytes)
        size = size if self.by_sample else 1
        return [list(picked[start : start + size]) for start in range(0, len(picked), size)]

    def rows(self) -> Iterator[tuple[Part, list[int] | None]]:
        """What is fitted on, batch by batch: which of its samples; None: all."""
        for b, numbers in itertools.groupby(self.fitted, key=lambda number: self._places[number][0]):
            part, rows = self.parts[b], [self._places[number][1] for number in numbers]
            yield part, None if not self.by_sample or len(rows) == len(part.wanted) else rows

    def batches(self) -> Iterator[Part]:
        """What is fitted on, batch by batch."""
        for part, rows in self.rows():
            yield part if rows is None else part.map(lambda value, rows=rows: value[rows])  # type: ignore[misc]

    def error(self, result: Callable[[Part], Tensor], seen: Callable[[Tensor], Tensor]) -> float:
        """Mean square of what is off on the samples held out, as a share of the mean square of what is wanted there.

        Args:
            result: what is given for some samples.
            seen: what counts of that, and of what is wanted.
        """
        lost = power = 0.0
        for picked in self.cut(self.held):
            part = self.take(picked)
            wanted = part._replace(wanted=seen(part.wanted))
            lost += float(wanted.error(seen(result(part)))) * len(picked)
            power += float(wanted.wanted.float().square().mean()) * len(picked)
        return lost / max(power, 1e-12 * len(self.held))


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known) if known else None
