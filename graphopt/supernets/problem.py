"""A graph with choices as a `graphopt.searching.Problem`.

Costs are exact (`graphopt.analysis.choices.Costs`), but for time, which is what a function of the graph says of it
(`graphopt.compiler.supernet_times.SupernetTimes`: measured on a runtime). Where training has left probabilities as the weights of
a choice, an option's damage is how much less likely it is than the likeliest, log(p_best / p): the least damage is then the
likeliest network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from graphopt.analysis.choices import Costs, LiveTerm
from graphopt.analysis.choices.costs import names
from graphopt.ir.choices import one_hot
from graphopt.ir.graph import Graph
from graphopt.searching import Assignment, Choice, Option, Problem, Term
from graphopt.utils.errors import InputError, alternatives

COUNTED: dict[str, Callable[[Costs], list[LiveTerm]]] = {"macs": Costs.macs, "parameters": Costs.parameters}
TIMED = {"ms": "ms", "latency": "ms"}  # limits of time, by the cost that they are of
Times = Callable[[Graph], Sequence[Term]]
NEVER = 1e-6  # the probability that counts for none


def problem_of(graph: Graph, budget: Mapping[str, float], times: Times | None = None) -> Problem:
    """The choices of a graph, what they cost, and the limits.

    Args:
        budget: `macs` (multiply-accumulates of one sample) and `parameters`; up to 1 as a share of the network with the first
            options, above that as a number. With `times` also `ms`, milliseconds, or `latency`, that as a share.
        times: of a graph with choices, milliseconds as terms over them.

    Raises:
        InputError: the graph has no choices, an unknown cost, a limit that is not over 0, one of time without `times`, or two.
    """
    _check(budget, times)
    costs = Costs(graph)
    if not costs.choices:
        raise InputError("the graph has no choices; see graphopt.passes.elastic and graphopt.spaces")
    found = []
    for label, live in zip(names(costs.choices), costs.choices, strict=True):
        damages = _damages(graph.tensor(live.node))
        found.append(Choice(label, live.kind, tuple(map(Option, live.labels, damages))))
    terms = {name: [_term(costs, live) for live in make(costs)] for name, make in COUNTED.items()}
    every: dict[str, Sequence[Term]] = {**terms, **({} if times is None else {"ms": times(graph)})}
    whole = Problem(found, every, {})
    limits = {}
    for name, limit in budget.items():
        cost, share = TIMED.get(name, name), name == "latency" or (name in COUNTED and limit <= 1)
        limits[cost] = limit * whole.cost(cost, whole.first) if share else limit
    return Problem(found, every, limits)


def _check(budget: Mapping[str, float], times: Times | None) -> None:
    for name, limit in budget.items():
        if name not in COUNTED and name not in TIMED:
            raise InputError(f"a supernet has no cost {name!r}; {alternatives(name, [*COUNTED, *TIMED], 'costs')}")
        if name in TIMED and times is None:
            raise InputError(
                f"a limit of {name} needs what measures it: times=graphopt.compiler.supernet_times.SupernetTimes('host')"
            )
        if not 0 < limit < math.inf:
            raise InputError(f"the limit of {name} must be over 0, got {limit}")
        if name == "latency" and limit >= 1:
            raise InputError(f"the limit of latency is a share, under 1, got {limit}; for milliseconds give 'ms'")
    if {*TIMED} <= {*budget}:
        raise InputError("give one of 'latency' (a share) and 'ms', not both")


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
