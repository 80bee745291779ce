"""Who teaches whom, and when.

chain([assistant, student], data, teacher=model)      through assistants of falling size
chain([first, second, third], data)                   born again: each generation learns from the one before
Mutual([other, ...])                                  students that learn from each other
stagewise(graph, data, teacher)                       the stages of a student one after another
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.ir.reading import leading
from graphopt.training.compression import Compression, Run
from graphopt.training.distillation.distances import Divergence
from graphopt.training.distillation.distill import Distill, Response
from graphopt.training.distillation.places import Place, stages
from graphopt.training.losses import Loss, loss_of, output
from graphopt.training.report import TrainingReport
from graphopt.training.trainer import train
from graphopt.utils.errors import InputError

Learn = Callable[[Any], Compression | Sequence[Compression]]


def chain(
    graphs: Sequence[Graph], data: Any, *, teacher: Any = None, learn: Learn = Response, **options: Any
) -> list[TrainingReport]:
    """Train graphs one after another, each with the one before as its teacher.

    From a large network through assistants to a small one: Mirzadeh et al. 2020 (TAKD), "Improved Knowledge Distillation via
    Teacher Assistant". Networks of one architecture: Furlanello et al. 2018, "Born-Again Neural Networks".

    Args:
        graphs: trained in place, in this order.
        data: as for `graphopt.train`.
        teacher: of the first; None: it learns from the targets alone.
        learn: what makes a compression (or several) of a teacher.
        options: of `graphopt.train`.

    Returns:
        A report for each graph.

    Raises:
        InputError: no graph, or one that stands there twice.
    """
    if not graphs or len({id(graph) for graph in graphs}) < len(graphs):
        raise InputError("a chain needs at least one graph, each of them once; give clones")
    reports = []
    for graph in graphs:
        found: Compression | Sequence[Compression] = () if teacher is None else learn(teacher)
        compress: list[Compression] = [found] if isinstance(found, Compression) else list(found)
        reports.append(train(graph, data, compress=compress, **options))
        teacher = graph.eval()
    return reports


class Mutual(Compression):
    """Students that learn from the targets and from each other: Zhang et al. 2018, "Deep Mutual Learning".

    The graph that is trained is one of them. Each has the task's loss and the mean of its divergences from the others, which are
    taken as fixed; all take their steps at once (the paper lets them take turns). Afterwards the others are trained, too, as
    they were in the last step; the best state is kept of the first alone.

    Args:
        others: graphs, trained in place.
        loss: of the task for the others; as for `graphopt.train`.
        temperature: of the divergence; the paper has 1.
        weight: of the divergence.

    Raises:
        InputError: no other student, or one that is trained already.
    """

    def __init__(
        self, others: Sequence[Graph], *, loss: str | Loss | None = None, temperature: float = 1.0, weight: float = 1.0
    ) -> None:
        if not others or len({id(graph) for graph in others}) < len(others):
            raise InputError("mutual learning needs at least one other student, each of them once")
        if not weight > 0 or not temperature > 0:
            raise InputError(f"weight and temperature must be over 0, got {weight} and {temperature}")
        self.others, self.task, self.weight = list(others), loss_of(loss), weight
        self.divergence = Divergence(temperature)
        self.executors: list[Executor] = []

    def attach(self, graph: Graph) -> list[Change]:
        if any(other is graph for other in self.others):
            raise InputError("the graph that is trained is among the others; give clones")
        self.executors = [_training(other) for other in self.others]
        return []

    def helpers(self) -> Sequence[nn.Module]:
        return [other.module for other in self.others]

    def loss(self, run: Run) -> Tensor:
        inputs = [x.detach() for x in run.batch.inputs]
        results = [each.nested(each.run(each.graph.results, inputs)) for each in self.executors]
        answers = [output(run.outputs), *map(output, results)]
        losses = [self.weight * self._from_others(place, answers) for place in range(len(answers))]
        if run.batch.targets is not None:
            losses += [self.task(found, run.batch.targets) for found in results]
        return torch.stack(losses).sum()

    def _from_others(self, place: int, answers: list[Tensor]) -> Tensor:
        others = [answer.detach() for at, answer in enumerate(answers) if at != place]
        return torch.stack([self.divergence(answers[place], other).mean() for other in others]).mean()


def stagewise(
    graph: Graph,
    data: Any,
    teacher: Any,
    *,
    epochs: Sequence[int] | int = 1,
    method: Any = "hint",
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    **options: Any,
) -> list[TrainingReport]:
    """Train the stages of a student one after another to give what the teacher's give, the others held; then what is behind them
    on the targets. Gao et al. 2018, "An Embarrassingly Simple Approach for Knowledge Distillation".

    Stages are those of the rule `stages` (see `graphopt.training.distillation.places`).

    Args:
        graph: trained in place.
        data: as for `graphopt.train`, with targets.
        teacher: a module or graph with as many stages.
        epochs: for each stage, and for the rest at last; one number: for each of them.
        method: what a stage is compared by.
        evaluate: in the last part alone.
        options: of `graphopt.train`.

    Returns:
        A report for each part.

    Raises:
        InputError: a number of epochs for each part that does not fit, or no stages.
    """
    ends = stages(graph)
    if not ends:
        raise InputError("the student has no stages: no convolution computes more than one position")
    lengths = [epochs] * (len(ends) + 1) if isinstance(epochs, int) else list(epochs)
    if len(lengths) != len(ends) + 1:
        raise InputError(f"the student has {len(ends)} stages; epochs must be one number, or {len(ends) + 1}")
    *parts, rest = _parameters_by_stage(graph, ends)
    reports = []
    for place, (part, length) in enumerate(zip(parts, lengths, strict=False)):
        with _only(graph, part):
            compress = [_StageOnly(teacher, method, place)]
            reports.append(train(graph, data, loss=_nothing, compress=compress, epochs=length, **options))
    with _only(graph, rest):
        reports.append(train(graph, data, epochs=lengths[-1], evaluate=evaluate, **options))
    return reports


class _StageOnly(Distill):
    """A method on one of its places, counted from the front."""

    def __init__(self, teacher: Any, method: Any, place: int) -> None:
        super().__init__(teacher, method)
        self.place = place

    def _pairs(self, *given: Any) -> Any:
        found = super()._pairs(*given)
        if self.place >= len(found):
            raise InputError(f"the teacher has only {len(found)} stages; it needs as many as the student")
        return [found[self.place]]


def _nothing(outputs: Any, targets: Any) -> Tensor:
    """A task's loss that is none."""
    return 0.0 * output(outputs).sum()


def _parameters_by_stage(graph: Graph, ends: Sequence[Place]) -> list[list[Tensor]]:
    """The parameters that each stage adds to those before, and the rest."""
    known = set[int]()
    parts = []
    for until in [*(place.nodes[0] for place in ends), *graph.outputs]:
        if isinstance(until, Node):
            found = [graph.parameter(node) for node in sorted(leading(until)) if node.op == "get_attr"]
            parts.append([value for value in found if value.requires_grad and id(value) not in known])
            known |= {id(value) for value in found}
    return [*parts[: len(ends)], [value for part in parts[len(ends) :] for value in part]]


@contextmanager
def _only(graph: Graph, part: Sequence[Tensor]) -> Iterator[None]:
    """These parameters are trainable inside, as far as they were before; the others are not."""
    wanted, before = {id(p) for p in part}, {p: p.requires_grad for p in graph.parameters()}
    try:
        for parameter, trainable in before.items():
            parameter.requires_grad = trainable and id(parameter) in wanted
        yield
    finally:
        for parameter, trainable in before.items():
            parameter.requires_grad = trainable


def _training(graph: Graph) -> Executor:
    """What runs a graph that is trained along, with gradients for its parameters."""
    learned = {n: graph.parameter(n) for n in graph.nodes if n.op == "get_attr" and graph.parameter(n).requires_grad}
    return Executor(graph, constants=learned, gradients=True, training=True)
