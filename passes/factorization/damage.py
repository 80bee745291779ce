"""What each candidate would do to the network's output.

With data: a candidate's error is the share of its layer's responses that is lost on the original's inputs. For a few candidates
of each layer the network is run with the weight they stand for; between them damage follows the error as a power law, whatever
the method. Without data: the share of the weight's energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from graphopt.analysis.im2col import weight_matrix
from graphopt.analysis.moments import input_moments
from graphopt.analysis.output_error import Probe, power_law
from graphopt.fitting.least_squares import metric_of
from graphopt.ir.graph import Graph
from graphopt.passes.factorization.candidates import Candidate, Choice
from graphopt.passes.factorization.fitting import Problem
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.repair import fittable
from graphopt.utils.progress import progress

QUICK = 8  # steps of the search for factors, to compare candidates by
LEVELS = (0.0, 0.5, 1.0)  # of a layer's candidates, by rising error, that are tried in the network


def weigh(graph: Graph, found: Sequence[Choice], data: Iterable[list[Tensor]] | None) -> None:
    """Set error and damage of every candidate."""
    todo = [choice for choice in found if choice.candidates]
    if data is None:
        for choice in todo:
            _by_weight(graph, choice)
            for candidate in choice.candidates:
                candidate.damage = candidate.error
        return
    probe = Probe(graph, data)
    with progress("measuring candidates", total=len(todo)) as advance:
        watched = {c.site.layer: c for c in todo if fittable(c.site)}
        for choice in (c for c in todo if not fittable(c.site)):
            _by_weight(graph, choice)
            _try_some(graph, probe, choice)
            advance()
        for layer, moments in input_moments(graph, list(watched), data):
            weight = weight_matrix(layer, graph.tensor(layer.weight)).double()
            _by_responses(watched[layer], Problem(weight, metric_of(moments)[0]))
            _try_some(graph, probe, watched[layer])
            advance()


def _by_weight(graph: Graph, choice: Choice) -> None:
    layer, weight = choice.site.layer, choice.site.weight(graph)
    for method in _methods(choice):
        mine = [c for c in choice.candidates if c.method is method]
        for candidate, error in zip(mine, method.estimate(layer, weight, [c.ranks for c in mine]), strict=True):
            candidate.error = error


def _by_responses(choice: Choice, problem: Problem) -> None:
    for candidate in choice.candidates:
        candidate.chain = candidate.method.fit(choice.site.layer, problem, candidate.ranks, steps=QUICK)
        candidate.error = problem.error(candidate.chain)


def _try_some(graph: Graph, probe: Probe, choice: Choice) -> None:
    """Run the network with some of the candidates; the others' damage follows."""
    ranked = sorted(choice.candidates, key=lambda c: c.error)
    tried = sorted({round(level * (len(ranked) - 1)) for level in LEVELS})
    name = str(choice.site.layer.weight.target)
    points = [(ranked[n].error, probe.damage(changed={name: _dense(graph, choice, ranked[n])})) for n in tried]
    for candidate, damage in zip(ranked, power_law(points, np.array([c.error for c in ranked])), strict=True):
        candidate.damage = float(damage)


def _dense(graph: Graph, choice: Choice, candidate: Candidate) -> Tensor:
    layer, weight = choice.site.layer, choice.site.weight(graph)
    chain = candidate.chain
    if chain.weights[0].is_meta:
        chain = candidate.method.decompose(layer, weight, candidate.ranks)
    return layer.native(chain.dense().to(weight.dtype).reshape(weight.shape)).contiguous()


def _methods(choice: Choice) -> list[Method]:
    return list({id(c.method): c.method for c in choice.candidates}.values())
