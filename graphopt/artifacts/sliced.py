"""Artifacts whose programs have fixed shapes: a free batch is computed in slices of the size they were made for.

A backend implements `_call`, one call of the program; `batch` in the manifest's options says how many samples that computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.ir.graph import Graph
from graphopt.utils.errors import ArtifactError, InputError

Arrays = list[np.ndarray[Any, Any]]
BATCH = "batch"  # in a manifest's options: samples of one call, None where shapes are those of the manifest


class SlicedArtifact(Artifact):
    """A model whose program takes one batch size."""

    @property
    def batch(self) -> int | None:
        """Samples that one call of the program computes; None where no batch is free.

        Raises:
            ArtifactError: the manifest says something else than a number of samples.
        """
        batch = self.manifest.options[BATCH]
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ArtifactError(f"{self.manifest.model} computes {batch!r} samples at once; write the artifact again")
        return batch

    graph: Graph | None

    def lowered_graph(self) -> Graph:
        """What the artifact was lowered from.

        Raises:
            InputError: it was loaded from a folder.
        """
        if self.graph is None:
            raise InputError(
                "the artifact was loaded from a folder, which does not hold its graph; compare one that lower(...) returned"
            )
        return self.graph

    @abstractmethod
    def _call(self, inputs: Arrays) -> Arrays:
        """One call of the program, with inputs of its shapes."""

    def zeros(self) -> dict[str, Tensor]:
        """See `Artifact.zeros`; as many samples as the program computes at once."""
        batch, inputs = self.batch, super().zeros()
        if batch is None:
            return inputs
        free = dict(zip(inputs, self._free, strict=True))
        return {name: x.new_zeros(batch, *x.shape[1:]) if free[name] else x for name, x in inputs.items()}

    def _run(self, inputs: Arrays) -> Arrays:
        if self._fits(inputs):
            return self._call(inputs)
        assert self.batch is not None
        return in_slices(self._call, inputs, self._free, self.batch)

    @property
    def _free(self) -> list[bool]:
        """For each input whether its batch is free."""
        return [spec.shape[:1] == (None,) for spec in self.manifest.inputs]

    def _fits(self, inputs: Arrays) -> bool:
        """One call of the program computes them."""
        batch = self.batch
        return batch is None or all(len(a) == batch for a, free in zip(inputs, self._free, strict=True) if free)


def in_slices(compute: Callable[[Arrays], Arrays], inputs: Arrays, free: Sequence[bool], batch: int) -> Arrays:
    """Compute a batch of any size in slices; the last one is filled up with copies of its first sample.

    Args:
        compute: one slice.
        free: for each input whether its first dimension is the batch; others are given to every slice as they are.
        batch: samples of a slice.

    Raises:
        InputError: there are no samples.
    """
    count = next(len(a) for a, f in zip(inputs, free, strict=True) if f)
    if count == 0:
        raise InputError("the batch is empty; give at least one sample")
    parts = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch)
        rows[rows >= count] = start
        parts.append(compute([np.ascontiguousarray(a[rows]) if f else a for a, f in zip(inputs, free, strict=True)]))
    return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]
