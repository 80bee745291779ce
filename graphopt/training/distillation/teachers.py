"""Who is learned from.

    model                         a module, a graph, or any function that takes what the student takes
    Network(model, inputs=...)    the same, which takes another part of the batch (another modality)
    [model, other]                several, which count alike; Ensemble([...], by="confidence") weights them
    Route(model, checkpoints)     one after another, from early in the teacher's training to late
    Recorded(path)                answers on disk (see `recorded`)

A teacher runs in eval mode, its weights get no gradients, and it is left as it was. Where more than answers is compared, a module
is captured with the student's example inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.data.batches import nested
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Example, Graph
from graphopt.training.batches import Batch
from graphopt.training.forward import in_channels_last
from graphopt.training.losses import output
from graphopt.utils.errors import InputError, alternatives, first_line

Inputs = Callable[[Any], Any]


class Teacher:
    """One network, or several."""

    def members(self) -> Sequence[Member]:
        """The networks."""
        raise NotImplementedError

    def step(self, progress: float) -> None:
        """Before each step of the training; `progress` goes from 0 to 1."""

    def chosen(self) -> Sequence[int]:
        """The members that count in this step."""
        return range(len(self.members()))

    def weights(self, answers: Sequence[Tensor], batch: Batch) -> list[Tensor | None]:
        """How much each of the chosen members counts, for every sample [N]; None: all alike."""
        return [None] * len(answers)


class Member(Teacher):
    """One teacher."""

    def members(self) -> Sequence[Member]:
        return [self]

    def attach(self, student: Graph) -> None:
        """Before the training."""

    def networks(self) -> Sequence[nn.Module]:
        """The modules that compute it."""
        return ()

    def example(self, student: Graph) -> Tensor | None:
        """What it answers to the student's example inputs; None where that cannot be known."""
        return None

    def graph(self, student: Graph) -> Graph:
        """Whose places can be watched.

        Raises:
            InputError: there are none.
        """
        raise InputError(
            f"a {type(self).__name__} teacher has answers alone, no places inside; use Response, or a network"
        )

    def run(self, batch: Batch, nodes: Sequence[Node], gradients: bool) -> tuple[Tensor, Mapping[Node, Any]]:
        """Its answers to a batch, and the values of nodes of its graph; with `gradients` by the inputs."""
        raise NotImplementedError


class Network(Member):
    """See the head of this file.

    Args:
        source: a module, a graph, or a function.
        inputs: what it takes of a batch as the data give it (for instance `lambda batch: batch["depth"]`): a tensor, a tuple of
            arguments, or a dictionary of keywords. None: what the student takes.
        sample: what it is captured with, where it does not take what the student takes and places inside it are wanted.
    """

    def __init__(self, source: Callable[..., Any], *, inputs: Inputs | None = None, sample: Any = None) -> None:
        if not callable(source):
            raise InputError(
                f"the teacher is a {type(source).__name__}; give a module, a graph, a function or a Teacher"
            )
        self.source, self.inputs, self.sample = source, inputs, sample
        self.captured: Graph | None = source if isinstance(source, Graph) else None
        self.student_example: Example | None = None
        self.executor: Executor | None = None

    def attach(self, student: Graph) -> None:
        if self.source is student:
            raise InputError("the teacher is the graph that is trained; give a clone of it")
        self.student_example = student.example

    def networks(self) -> Sequence[nn.Module]:
        if self.captured is not None:
            return [self.captured.module]
        return [self.source] if isinstance(self.source, nn.Module) else []

    def example(self, student: Graph) -> Tensor | None:
        if self.inputs is not None:
            return None
        batch = Batch(student.example.tensors(), None)
        return self.run(batch, (), False)[0]

    def graph(self, student: Graph) -> Graph:
        if self.captured is None:
            if not isinstance(self.source, nn.Module):
                raise InputError(
                    "the teacher is a function, which has no places inside; give a module or a graph, or use Response"
                )
            if self.inputs is not None and self.sample is None:
                raise InputError(
                    "the teacher takes other inputs than the student; give Network(..., sample=inputs to capture it with)"
                )
            args, kwargs = _arguments(self.sample) if self.sample is not None else self._example
            with evaluating(self.source):
                self.captured = Graph.capture(self.source, args, kwargs)
        return self.captured

    @property
    def _example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        assert self.student_example is not None
        return self.student_example.args, self.student_example.kwargs

    def run(self, batch: Batch, nodes: Sequence[Node], gradients: bool) -> tuple[Tensor, Mapping[Node, Any]]:
        args, kwargs = self._given(batch, gradients)
        if self.captured is None:
            with torch.no_grad(), evaluating(self.source):
                return output(self.source(*args, **kwargs)).detach(), {}
        executor = self._executor(self.captured, gradients)
        values = executor.run([*self.captured.results, *nodes], self.captured.check_inputs(args, kwargs))
        return output(executor.nested(values)), values

    def _executor(self, graph: Graph, gradients: bool) -> Executor:
        """Kept, as it holds plans of what to compute."""
        if self.executor is None or self.executor.graph is not graph or self.executor.gradients != gradients:
            self.executor = Executor(graph, gradients=gradients)
        return self.executor

    def _given(self, batch: Batch, gradients: bool) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if self.inputs is not None:
            return _arguments(self.inputs(batch.given))
        assert self.student_example is not None
        return nested(
            self.student_example, batch.inputs if gradients else [in_channels_last(x.detach()) for x in batch.inputs]
        )


class Route(Network):
    """A teacher at several times of its own training: the student follows from the first to the last.

    Jin et al. 2019, "Knowledge Distillation via Route Constrained Optimization". With one checkpoint, from before the teacher
    had converged, it is a teacher stopped early (Cho and Hariharan 2019).

    Args:
        source: the module or graph that the checkpoints fit; a copy of it is used.
        checkpoints: state dictionaries, or files of them, in order.
        at: the progress of the student's training, 0 to 1, at which each begins; None: equal shares.

    Raises:
        InputError: no checkpoint, or times that do not fit.
    """

    def __init__(
        self,
        source: nn.Module | Graph,
        checkpoints: Sequence[Mapping[str, Tensor] | str | Path],
        *,
        at: Sequence[float] | None = None,
    ) -> None:
        super().__init__(source)
        if not checkpoints:
            raise InputError("a route needs at least one checkpoint")
        count = len(checkpoints)
        self.at = [place / count for place in range(count)] if at is None else list(at)
        if len(self.at) != count or sorted(self.at) != self.at or self.at[0] != 0:
            raise InputError(
                f"`at` must have one progress for each of the {count} checkpoints, rising from 0; got {self.at}"
            )
        self.checkpoints, self.current = checkpoints, -1

    def attach(self, student: Graph) -> None:
        super().attach(student)
        self.captured = self.graph(student).clone()
        self.current = -1
        self.step(0.0)

    def step(self, progress: float) -> None:
        wanted = max(place for place, begin in enumerate(self.at) if begin <= progress)
        if wanted != self.current and self.captured is not None:
            try:
                self.captured.load_state_dict(self._state(wanted))
            except RuntimeError as error:
                raise InputError(
                    f"checkpoint {wanted} of the route does not fit its teacher: {first_line(error)}"
                ) from error
            self.current = wanted

    def _state(self, place: int) -> Mapping[str, Tensor]:
        found = self.checkpoints[place]
        if isinstance(found, (str, Path)):
            if not Path(found).is_file():
                raise InputError(f"there is no checkpoint {found}")
            loaded: Mapping[str, Tensor] = torch.load(found, map_location="cpu", weights_only=True)
            return loaded
        return found


class Ensemble(Teacher):
    """Several teachers.

    `mean`: all alike. The divergence from the averaged soft targets is, but for a constant, the average of the divergences.
    `confidence`: of K teachers with cross entropy L_k on a sample, each counts (1 - exp(L_k) / sum of exp(L)) / (K - 1) there.
    Zhang et al. 2022 (CA-MKD), "Confidence-Aware Multi-Teacher Knowledge Distillation". Wants classes as targets.
    `random`: one, drawn for each step; Shen et al. 2019 (MEAL).

    Args:
        teachers: what a teacher may be.

    Raises:
        InputError: fewer than two, ensembles among them, or another `by`.
    """

    BY = ("mean", "confidence", "random")

    def __init__(self, teachers: Sequence[Any], *, by: str = "mean") -> None:
        if len(teachers) < 2:
            raise InputError(f"an ensemble needs two teachers at least, got {len(teachers)}")
        if by not in self.BY:
            raise InputError(f"unknown weighting {by!r}; {alternatives(by, self.BY, 'weightings')}")
        self.by = by
        self.teachers = [as_teacher(each) for each in teachers]
        if any(isinstance(each, Ensemble) for each in self.teachers):
            raise InputError("an ensemble has ensembles among its teachers; give their members")

    def members(self) -> Sequence[Member]:
        return [member for each in self.teachers for member in each.members()]

    def step(self, progress: float) -> None:
        for each in self.teachers:
            each.step(progress)

    def chosen(self) -> Sequence[int]:
        everyone = range(len(self.members()))
        return [int(torch.randint(len(everyone), ()))] if self.by == "random" else everyone

    def weights(self, answers: Sequence[Tensor], batch: Batch) -> list[Tensor | None]:
        if self.by != "confidence":
            return [None] * len(answers)
        classes = batch.targets
        if not isinstance(classes, Tensor) or classes.is_floating_point():
            raise InputError(
                "teachers are weighted by their confidence in the right class, which wants classes as targets"
            )
        losses = torch.stack([F.cross_entropy(each, classes.long(), reduction="none") for each in answers])
        shares = (1 - losses.softmax(0)) / (len(answers) - 1)
        return [share * len(answers) for share in shares]


def as_teacher(given: Any) -> Teacher:
    """What a user gives for a teacher, as one.

    Raises:
        InputError: it is none.
    """
    if isinstance(given, Teacher):
        return given
    return Ensemble(given) if isinstance(given, (list, tuple)) else Network(given)


def _arguments(given: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(given, Mapping):
        return (), given
    return (tuple(given) if isinstance(given, (list, tuple)) else (given,)), {}


@contextlib.contextmanager
def evaluating(source: Any) -> Iterator[None]:
    """Modules in eval mode inside, each in its own mode afterwards."""
    modes = {m: m.training for m in source.modules()} if isinstance(source, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
