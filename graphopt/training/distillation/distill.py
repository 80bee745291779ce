"""Learn from another network.

    train(graph, loader, compress=[Response(teacher)])                         its answers, beside the targets
    train(graph, inputs, compress=[Response(teacher)])                         or without any
    train(graph, loader, compress=[Response(teacher), Distill(teacher, "attention")])     what it computes inside, too
    train(graph, loader, compress=[Distill(teacher, "hint", places=["layer1", ("layer2", "blocks.3")])])

What is compared, and how, is a row of a table (`methods`), or a `Term` of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.batches import Batch
from graphopt.training.compression import Compression, Run
from graphopt.training.distillation.distances import Divergence, squared
from graphopt.training.distillation.methods import method as find
from graphopt.training.distillation.places import Answer, Names, Pair, Place, pairs
from graphopt.training.distillation.teachers import Member, as_teacher
from graphopt.training.distillation.terms import Comparison, Term, mean
from graphopt.training.forward import full
from graphopt.training.losses import output
from graphopt.utils.errors import InputError


class Distill(Compression):
    """A loss between values of a student and of its teacher.

    Args:
        teacher: a module, a graph, a function, several of them, or a `Teacher`; see `graphopt.training.distillation.teachers`.
        method: a name in the table of `graphopt.training.distillation.methods`, or terms of one's own.
        places: names of layers or blocks, as reports and `graph.site` have them: one for both networks, or (student's,
            teacher's); or a rule of `graphopt.training.distillation.places`. None: the method's rule. What a method takes from
            the outputs, the inputs or the last layer stays.
        weight: of the whole loss beside the task's, whose weight is one; None: the method's own.
        during: from and to which progress of the training, 0 to 1, it counts.
        seed: of what is learned along.

    Raises:
        InputError: an unknown method or place (with what is near), a weight that is not over 0, a teacher that answers another
            number of classes. All of them before the first step; places of a teacher for other inputs with the first batch.
    """

    def __init__(
        self,
        teacher: Any,
        method: str | Term | Sequence[Term],
        *,
        places: Names | str | None = None,
        weight: float | None = None,
        during: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        if weight is not None and not weight > 0:
            raise InputError(f"weight must be over 0, got {weight}")
        if not 0 <= during[0] < during[1] <= 1:
            raise InputError(f"during is from and to a progress, 0 <= from < to <= 1, got {during}")
        self.teacher = as_teacher(teacher)
        self.terms, usual = find(method)
        self.weight = usual if weight is None else weight
        self.places, self.during, self.seed = places, during, seed
        self.active = True
        self.comparisons: list[list[Comparison]] = []  # for each member of the teacher, for each term
        self.answers: list[Answer] = []  # of the student and of each member

    @property
    def differentiates(self) -> bool:
        return any(term.differentiates for term in self.terms)

    def attach(self, graph: Graph) -> list[Change]:
        members = self.teacher.members()
        for member in members:
            member.attach(graph)
        self.answers = _answers(graph, members, any(term.places == "outputs" for term in self.terms))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.comparisons = [
                [Comparison(term, self._pairs(term, graph, member, answer)) for term in self.terms]
                for member, answer in zip(members, self.answers[1:], strict=True)
            ]
        return []

    def _pairs(self, term: Term, graph: Graph, member: Member, answer: Answer) -> list[Pair]:
        if term.places == "outputs":
            return [(Place("outputs", (self.answers[0],)), Place("outputs", (answer,)))]
        given = None if term.places in ("features", "gradients") else self.places
        rule, names = (given, None) if isinstance(given, str) else (term.places, given)
        found = pairs(graph, member.graph(graph), rule, names)
        if term.places == "flow" and names is not None:  # two values make a place there
            return [(a + c, b + d) for (a, b), (c, d) in pairwise(found)]
        return found

    def helpers(self) -> Sequence[nn.Module]:
        return [each for comparisons in self.comparisons for each in comparisons if each.state_dict()]

    def networks(self) -> Sequence[nn.Module]:
        return [module for member in self.teacher.members() for module in member.networks()]

    def step(self, progress: float) -> None:
        self.active = self.during[0] <= progress < self.during[1]
        self.teacher.step(progress)

    def batch(self, batch: Batch) -> Batch:
        if not self.differentiates:
            return batch
        free = [x.detach().requires_grad_() if x.is_floating_point() else x for x in batch.inputs]
        return batch._replace(inputs=free)

    def watched(self, graph: Graph) -> Sequence[Node]:
        return _nodes([each for comparisons in self.comparisons for each in comparisons], 0)

    def loss(self, run: Run) -> Tensor | None:
        if not self.active:
            return None
        chosen = list(self.teacher.chosen())
        student: dict[Any, Any] = {**run.values, self.answers[0]: output(run.outputs)}
        with nullcontext() if self.differentiates else run.precision():
            answers, values = self._teachers(run.batch, chosen)
        weights = self.teacher.weights(answers, run.batch)
        found = [
            self._term(place, [self.comparisons[at][place] for at in chosen], student, values, weights)
            for place in range(len(self.terms))
        ]
        return self.weight * torch.stack(found).sum()

    def _teachers(self, batch: Batch, chosen: Sequence[int]) -> tuple[list[Tensor], list[dict[Any, Any]]]:
        """Answers and values of the members that count."""
        answers, values = [], []
        members = self.teacher.members()
        for at in chosen:
            answer, found = members[at].run(batch, _nodes(self.comparisons[at], 1), self.differentiates)
            answer, found = pytree.tree_map_only(Tensor, full, (answer, dict(found)))
            answers.append(answer)
            values.append(dict[Any, Any](found) | {self.answers[1 + at]: answer})
        return answers, values

    def _term(
        self, place: int, comparisons: list[Comparison], student: Any, teachers: list[Any], weights: list[Tensor | None]
    ) -> Tensor:
        term = self.terms[place]
        if term.combine is not None:
            theirs = [each.teacher(values, student) for each, values in zip(comparisons, teachers, strict=True)]
            together = [term.combine(list(at)) for at in zip(*theirs, strict=True)]
            return comparisons[0].distance(comparisons[0].student(student, teachers[0]), together).mean()
        parts = []
        for each, values, weight in zip(comparisons, teachers, weights, strict=True):
            parts.append(mean(each.distance(each.student(student, values), each.teacher(values, student)), weight))
        return torch.stack(parts).mean()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.terms)} terms, weight={self.weight})"


class Response(Distill):
    """The teacher's answers as targets: the loss of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network". With
    temperature T,

        T^2 * sum over classes of  p_t log(p_t / p_s),      p = softmax(logits / T), of teacher and student

    Args:
        teacher: as for `Distill`.
        temperature: of classes, [N, classes, ...]; None: answers are numbers, compared by squared error.
        weight: of this loss beside the task's, whose weight is one.
        during: from and to which progress of the training, 0 to 1, it counts.

    Raises:
        InputError: a temperature or weight that is not over 0, a teacher that answers another number of classes.
    """

    def __init__(
        self,
        teacher: Any,
        *,
        temperature: float | None = 4.0,
        weight: float = 1.0,
        during: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if temperature is not None and not temperature > 0:
            raise InputError(f"temperature must be over 0, got {temperature}")
        distance = squared if temperature is None else Divergence(temperature)
        super().__init__(teacher, Term(distance, places="outputs"), weight=weight, during=during)


def _answers(graph: Graph, members: Sequence[Member], compared: bool) -> list[Answer]:
    """What the student and each member answer to the example; compared: they must be alike."""
    with graph.evaluating(), torch.no_grad():
        own = output(graph(*graph.example.args, **graph.example.kwargs)) if compared else torch.zeros(1, 1)
    found = [Answer(own)]
    for member in members:
        theirs = member.example(graph) if compared else None
        if theirs is not None and theirs.shape[1:] != own.shape[1:]:
            raise InputError(
                f"the teacher answers {_behind(theirs)}, the graph {_behind(own)}; they must be the same (N is the batch)"
            )
        found.append(Answer(own if theirs is None else theirs))
    return found


def _behind(answer: Tensor) -> str:
    return f"[{', '.join(['N', *map(str, answer.shape[1:])])}]"


def _nodes(comparisons: Sequence[Comparison], side: int) -> list[Node]:
    """The nodes whose values are compared, of the student (0) or the teacher (1)."""
    nodes = [node for each in comparisons for pair in each.pairs for node in pair[side].nodes]
    return list(dict.fromkeys(node for node in nodes if isinstance(node, Node)))
