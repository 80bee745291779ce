"""Fit regions of a changed graph on data, one after another, so that they give what the original gave. All methods that rebuild
region by region share this loop; what differs is the `Parametrization`: what may change, and how the best of it is found.

    fits = fit(original, graph, data, [LayerWeights(...) for ...], "reconstructing")

The regions are taken in execution order. For each one,

1. its inputs are taken from the changed network, in which the regions before it are fitted already, and what it should give from
   the original (asymmetric reconstruction);
2. the parametrization is solved on these samples, one in eight held out (`graphopt.fitting.samples`);
3. the region is run on the samples held out, with what was found and with what was there. A parametrization may offer more
   cautious choices, such as a stronger ridge; they are tried as long as the error falls. The best is stored where its error is
   smaller than before; else the region stays as it is. So no region gets worse on data it was not fitted to. With up to eight
   samples one alone decides, and a single one decides about its own fit.

Each graph is run once through all data, and every region of the changed one besides, to know how well it does; not where a shift
of each channel is all that may change (`Parametrization.shifts`), whose effect is known. What is in
flight between two regions stays in memory up to `memory` bytes and goes to temporary files beyond that. With a `checkpoint`
folder every region that is done is written down, and the same call goes on behind the last one, with the same result.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.3
        (asymmetric reconstruction).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.observers import first_non_finite, is_finite
from graphopt.execution.spill import Overflow
from graphopt.execution.streaming import Frontier
from graphopt.fitting.importance import fisher
from graphopt.fitting.journal import Journal, fingerprint
from graphopt.fitting.region import Region
from graphopt.fitting.residual import Stream
from graphopt.fitting.samples import Part, Samples
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.utils.errors import InputError, NonFiniteError
from graphopt.utils.progress import track

LOG = logging.getLogger(__name__)
MEMORY = 2**31  # bytes of values in flight that are held in memory, of both graphs together

P = TypeVar("P", bound="Parametrization")
Found = dict[str, Any]  # tensors, numbers, text, and lists and dictionaries of them: what a journal can hold


@dataclass(eq=False, kw_only=True)
class Parametrization(ABC):
    """What may change of a region, and how the best of it is found on samples.

    Attributes:
        region: of the changed graph.
        source: the region of the original whose result is wanted.
        kept: the channels of that result that the changed graph still has; None: all.
        channel_dim: the dimension of the result that counts channels, from the end: -1, -2, ...
        makes_up: whether the result also makes up for what the residual stream that it is added to has lost before.
        allowed: the share of the error before that is accepted: over 1 where something else than the error is gained.
        shifts: whether `shift` is all that may change; what the region gives as it is, is then known of each `Part`.
    """

    makes_up: ClassVar[bool] = False
    shifts: ClassVar[bool] = False

    region: Region
    source: Region
    kept: Tensor | None = None
    channel_dim: int = -1
    allowed: float = 1.0

    @classmethod
    def of_layer(cls: type[P], layer: Layer, source: Layer, /, **fields: Any) -> P:
        """Of a layer, which stands for one of the original; `fields`: the others of the class."""
        dim = -1 - layer.dims
        return cls(region=Region.of_layer(layer), source=Region.of_layer(source), channel_dim=dim, **fields)

    @abstractmethod
    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        """What is best for the samples that are fitted on, and more cautious choices after it; the graph stays as it is.

        The loop asks for the next one as long as the error on the samples held out falls.
        """

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        """The region's constants, or calls on constants, with the values found for them."""
        return {}

    def shift(self, graph: Graph, found: Found) -> Tensor | None:
        """What is added to each channel of the result besides, [channels]; None: nothing."""
        return None

    @abstractmethod
    def store(self, graph: Graph, found: Found) -> None:
        """Write what was found into the graph. Calls may not be added or removed."""

    def seen(self, result: Tensor) -> Tensor:
        """What is compared with what is wanted; the result itself, or what a function behind the region makes of it."""
        return result

    def shifted(self, result: Tensor, shift: Tensor | None) -> Tensor:
        """A result of the region with each channel shifted."""
        return result if shift is None else result + self.along_channels(shift).to(result.dtype)

    def along_channels(self, vector: Tensor) -> Tensor:
        """[channels], in a shape to be added to the result or multiplied with it."""
        return vector.reshape(-1, *[1] * (-1 - self.channel_dim))


class Fit(NamedTuple):
    """What was found for a region.

    Attributes:
        found: as the parametrization returned it, whether it was accepted or not.
        before, after: mean squared error on the samples held out, with what was there and with what was found, as a share of the
            mean square of what is wanted.
        allowed: the share of `before` that `after` has to be below.
    """

    found: Found
    before: float
    after: float
    allowed: float = 1.0

    @property
    def accepted(self) -> bool:
        return self.after < self.allowed * self.before

    @property
    def error(self) -> float:
        """That of the region as it is now."""
        return self.after if self.accepted else self.before


def fit(
    original: Graph,
    graph: Graph,
    data: Iterable[list[Tensor]],
    tasks: Sequence[Parametrization],
    doing: str,
    *,
    names: Mapping[str, str] | None = None,
    importance: bool = False,
    memory: int | None = None,
    folder: Path | None = None,
    checkpoint: str | Path | None = None,
    options: str = "",
) -> list[Fit]:
    """Fit regions one after another, in place; see the head of this file.

    Args:
        original: the graph before the change.
        graph: after it.
        data: batches of input tensors; gone through once, with a checkpoint twice.
        tasks: what is fitted, in the order in which the regions begin.
        doing: what is said beside the progress bar, such as "reconstructing"; also names the pieces in `checkpoint`.
        names: call of `graph` -> the call of `original` that it stands for; equal names need no entry.
        importance: whether errors count by the squared gradient of the original's loss (`graphopt.fitting.importance`).
        memory: bytes of values in flight to hold in memory; None: `MEMORY`.
        folder: where the others are; None: the system's folder for temporary files.
        checkpoint: a folder that remembers what is done; None: nothing is remembered.
        options: whatever else decides the result of `tasks`, so that a checkpoint is not taken for that of another call.

    Returns:
        What was found, task by task.

    Raises:
        NonFiniteError: a region's wanted result holds NaN or infinity; names the call that is the first to give one.
        InputError: the data are empty, or a file in `checkpoint` is damaged.
    """
    weighted = [task.source.output for task in tasks] if importance else []
    overflow = Overflow(MEMORY if memory is None else memory, folder)
    walk = _Walk(original, graph, data, names or {}, weighted, overflow.keep)
    journal = Journal.of(checkpoint, lambda: fingerprint([original, graph], data, f"{doing}\n{options}"))
    done = []
    for number, task in enumerate(track(tasks, doing)):
        piece = journal.get(f"{doing} {number}")
        if piece is None:
            piece = walk.fit(task)._asdict()
            journal.put(f"{doing} {number}", piece)
        else:
            LOG.info("%s %d is taken from the checkpoint", doing, number)
        done.append(Fit(**piece))
        LOG.debug("%s %d: error %.3g -> %.3g", doing, number, done[-1].before, done[-1].after)
        if done[-1].accepted:
            task.store(graph, done[-1].found)
    return done


@dataclass(eq=False)
class _Walk:
    """Goes through both graphs side by side. The data are not held until the first region asks for its samples."""

    original: Graph
    graph: Graph
    data: Iterable[list[Tensor]]
    names: Mapping[str, str]
    weighted: Sequence[Node]  # results of the original whose elements have an importance
    keep: Callable[[Tensor], Tensor]

    @cached_property
    def batches(self) -> list[list[Tensor]]:
        found = [
            [self.keep(tensor.clone()) for tensor in batch] for batch in self.data
        ]  # loaders may write into theirs
        if not found:
            raise InputError("the data to fit to are empty; give at least one batch")
        return found

    @cached_property
    def frontiers(self) -> tuple[Frontier, Frontier]:
        return Frontier(self.original, self.batches, self.keep), Frontier(self.graph, self.batches, self.keep)

    @cached_property
    def importance(self) -> dict[Node, list[Tensor]]:
        return fisher(self.original, self.weighted, self.batches, self.keep) if self.weighted else {}

    @cached_property
    def _sources(self) -> dict[str, Node]:
        return {node.name: node for node in self.original.nodes}

    def source(self, node: Node) -> Node | None:
        """The value of the original that one of the changed graph stands for."""
        return self._sources.get(self.names.get(node.name, node.name))

    def fit(self, task: Parametrization) -> Fit:
        samples = self.samples(task)
        best = self.best(task, samples)
        if task.shifts:
            shift = task.shift(self.graph, best.found) if best.accepted else None
            results = [task.shifted(part.given, shift) for part in samples.parts if part.given is not None]
            self.frontiers[1].give(task.region.output, results)
        return best

    def best(self, task: Parametrization, samples: Samples) -> Fit:
        best, before = None, self.error(task, samples, {}, None)
        for found in task.solve(self.graph, samples):
            changed = task.constants(self.graph, found), task.shift(self.graph, found)
            after = self.error(task, samples, *changed)
            if best is not None and not after < best.after:
                break
            best = Fit(found, before, after, task.allowed)
        assert best is not None
        return best

    def error(
        self, task: Parametrization, samples: Samples, constants: Mapping[Node, Any], shift: Tensor | None
    ) -> float:
        executor = Executor(self.graph, constants=constants).settled()

        def result(part: Part) -> Tensor:
            given = part.given if part.given is not None else task.region.run(executor, part.inputs)
            return task.shifted(given, shift)

        return samples.error(result, task.seen)

    def samples(self, task: Parametrization) -> Samples:
        region, source = task.region, task.source
        stream = Stream.behind(self.graph, region, source, self.source) if task.makes_up else None
        theirs, ours = ([], []) if stream is None else ([stream.theirs], [stream.ours])
        original, changed = self.frontiers
        here = changed.before(region.first, [*region.inputs, *ours])
        there = original.before(source.first, [*source.inputs, *theirs])
        executor, ours_now = Executor(self.original).settled(), Executor(self.graph).settled()
        weights = self.importance.pop(source.output, [None] * len(here))
        parts, results = [], []
        for values, before, weight in zip(here, there, weights, strict=True):
            results.append(self.keep(source.run(executor, before[: len(source.inputs)])))
            wanted = self._kept(task, results[-1])
            if stream is not None:
                lost = self._kept(task, before[-1]) - values[-1]
                wanted = wanted + (lost if stream.factor is None else lost * task.along_channels(stream.factor))
            kept = wanted if wanted is results[-1] else self.keep(wanted)
            inputs = values[: len(region.inputs)]
            given = self.keep(region.run(ours_now, inputs)) if task.shifts else None
            parts.append(Part(inputs, kept, weight, given))
            if not is_finite(wanted):
                raise NonFiniteError(first_non_finite(executor, self.batches[len(parts) - 1]))
        original.give(source.output, results)
        return Samples(parts, by_sample=region.by_sample)

    def _kept(self, task: Parametrization, value: Tensor) -> Tensor:
        return value if task.kept is None else value.index_select(task.channel_dim, task.kept)
