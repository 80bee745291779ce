"""Batches of the size that a graph takes, cut and joined from those of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.data.batches import Input, Signature
from graphopt.ir.graph import Graph
from graphopt.ir.sizes import FreeSize

TOGETHER = 4  # samples: a convolution takes a fifth less time for these than for one after another

Batch = list[Tensor]


@dataclass(frozen=True)
class Rebatching:
    """Makes batches of exactly `size` samples; where that is None, those of fewer than four samples are joined.

    Inputs that are not batched, such as tables, stay with the samples they came with: batches that differ in them are not joined.

    Attributes:
        inputs: what the graph takes.
        free: the free size that counts samples; None: any number is taken.
        note: is told which samples are left out or repeated.
    """

    inputs: Sequence[Input]
    size: int | None
    free: FreeSize | None
    note: Callable[[str], None]

    @classmethod
    def of(cls, graph: Graph | Signature, inputs: Sequence[Input], note: Callable[[str], None]) -> Rebatching:
        size = None if graph.dynamic_batch else next((i.shape[0] for i in inputs if i.batched), None)
        return cls(inputs, size, graph.batch if isinstance(graph, Graph) else None, note)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return self._exact(batches, self.size) if self.size else self._joined(batches)

    def _exact(self, batches: Iterator[Batch], size: int) -> Iterator[Batch]:
        held, full = None, 0
        for tensors in batches:
            if held is not None and not self._alike(held, tensors):  # of other free sizes, or with another table
                if rest := self._length(held):
                    self.note(f"{rest} calibration samples do not fill the model's fixed batch of {size}; left out")
                held = None
            held = tensors if held is None else self._join(held, tensors)
            while self._length(held) >= size:
                yield self._slice(held, 0, size)
                held, full = self._slice(held, size, None), full + 1
        rest = self._length(held) if held else 0
        if held and not full:
            while self._length(held) < size:
                held = self._join(held, held)
            self.note(f"calibration repeats its {rest} samples to fill the model's fixed batch of {size}")
            yield self._slice(held, 0, size)
        elif rest:
            self.note(f"the last {rest} calibration samples do not fill the model's fixed batch of {size}; left out")

    def _joined(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        held: Batch | None = None
        for tensors in batches:
            if (
                held is not None
                and self._alike(held, tensors)
                and self._fits(self._length(held) + self._length(tensors))
            ):
                held = self._join(held, tensors)
                continue
            if held is not None:
                yield held
            held = tensors
        if held is not None:
            yield held

    def _fits(self, samples: int) -> bool:
        return samples <= TOGETHER and (self.free is None or self.free.takes(samples))

    def _length(self, tensors: Batch) -> int:
        return next(t.shape[0] for i, t in zip(self.inputs, tensors, strict=True) if i.batched)

    def _slice(self, tensors: Batch, start: int, stop: int | None) -> Batch:
        return [t[start:stop] if i.batched else t for i, t in zip(self.inputs, tensors, strict=True)]

    def _join(self, first: Batch, second: Batch) -> Batch:
        pairs = zip(self.inputs, first, second, strict=True)
        return [torch.cat([a, b]) if i.batched else b for i, a, b in pairs]

    def _alike(self, first: Batch, second: Batch) -> bool:
        """Whether two batches can be one."""
        pairs = list(zip(self.inputs, first, second, strict=True))
        alike = all(a.shape[1:] == b.shape[1:] if i.batched else torch.equal(a, b) for i, a, b in pairs)
        return alike and any(i.batched for i in self.inputs)
