"""A graph with choices as a `graphopt.searching.Problem`.

Costs are exact (`graphopt.analysis.choices.Costs`). Where training has left probabilities as the weights of a choice, an option's
damage is how much less likely it is than the likeliest, log(p_best / p): the least damage is then the likeliest network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from graphopt.analysis.choices import Costs, LiveTerm
from graphopt.analysis.choices.costs import names
from graphopt.ir.choices import one_hot
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment, Choice, Option, Problem, Term
from graphopt.utils.errors import InputError, alternatives

COUNTED: dict[str, Callable[[Costs], list[LiveTerm]]] = {"macs": Costs.macs, "parameters": Costs.parameters}
NEVER = 1e-6  # the probability that counts for none


def problem_of(graph: Graph, budget: Mapping[str, float]) -> Problem:
    """The choices of a graph, what they cost, and the limits.

    Args:
        budget: `macs` (multiply-accumulates of one sample) and `parameters`; up to 1 as a share of the network with the first
            options, above that as a number.

    Raises:
        InputError: the graph has no choices, an unknown cost, or a limit that is not over 0.
    """
    for name, limit in budget.items():
        if name not in COUNTED:
            raise InputError(f"a supernet has no cost {name!r}; {alternatives(name, COUNTED, 'costs')}")
        if not 0 < limit < math.inf:
            raise InputError(f"the limit of {name} must be over 0, got {limit}")
    costs = Costs(graph)
    if not costs.choices:
        raise InputError("the graph has no choices; see graphopt.passes.elastic and graphopt.spaces")
    found = []
    for label, live in zip(names(costs.choices), costs.choices, strict=True):
        damages = _damages(graph.tensor(live.node))
        found.append(Choice(label, live.kind, tuple(map(Option, live.labels, damages))))
    terms = {name: [_term(costs, live) for live in make(costs)] for name, make in COUNTED.items()}
    whole = Problem(found, terms, {})
    limits = {name: limit * whole.cost(name, whole.first) if limit <= 1 else limit for name, limit in budget.items()}
    return Problem(found, terms, limits)


def _term(costs: Costs, live: LiveTerm) -> Term:
    return Term(live.scope, partial(_cost, costs, live))


def _cost(costs: Costs, live: LiveTerm, options: Assignment) -> float:
    weights = [one_hot(0, len(choice)) for choice in costs.choices]
    for choice, option in zip(live.scope, options, strict=True):
        weights[choice] = one_hot(option, len(costs.choices[choice]))
    return float(live.of(weights))


def _damages(weights: Tensor) -> list[float]:
    shares = weights.clamp(min=0)
    if int((shares > 0).sum()) == 1:
        return [0.0] * len(shares)  # a choice that was made says nothing about the other options
    return [math.log(float(shares.max()) / max(float(share), NEVER)) for share in shares]
