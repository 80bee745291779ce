"""The assignment of least summed sensitivity under a budget, as an integer linear programme (`graphopt.searching.exact`).

    minimize    sum_i s_i(b_i)                                         b_i: choice of decision i, s: sensitivity
    subject to  c + sum_i c_i(b_i) + sum_ij c_ij(b_i, b_j)  <=  budget

Papers: Hubara et al. 2020, "Improving Post Training Neural Quantization", section 3.4; Yao et al. 2021, "HAWQ-V3", section 3.3;
        Li et al. 2021, "BRECQ", section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.passes.quantization.mixed.cost import Cost, Numbers
from graphopt.searching import Assignment, Choice, Option, Problem, Term
from graphopt.searching.exact import exact

SECONDS, GAP = 60.0, 1e-6


def solve(sensitivities: Sequence[Numbers], cost: Cost) -> tuple[int, ...] | None:
    """The best assignment; None where none meets the budget.

    Args:
        sensitivities: of every decision, that of each choice.
    """
    return exact(problem(sensitivities, cost), gap=GAP, seconds=SECONDS)


def problem(sensitivities: Sequence[Numbers], cost: Cost) -> Problem:
    """Decisions as choices whose damages are sensitivities, and their cost within its budget."""
    choices = [
        Choice(str(number), "bits", tuple(Option(str(index), float(s)) for index, s in enumerate(each)))
        for number, each in enumerate(sensitivities)
    ]
    terms = [Term((), lambda options: cost.constant)]
    terms += [Term((number,), _at(single)) for number, single in enumerate(cost.single)]
    terms += [Term(pair, _at(joint)) for pair, joint in cost.joint.items()]
    return Problem(choices, {cost.unit: terms}, {cost.unit: cost.budget})


def _at(costs: Numbers) -> Callable[[Assignment], float]:
    return lambda options: float(costs[options])
