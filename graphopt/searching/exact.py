"""The least damage within the limits, by integer programming.

One variable for every option of every choice, one for every combination of the options in a term's scope:

    minimize    sum of damage_i,o x_i,o
    subject to  sum over o of x_i,o = 1
                sum over the combinations of term t in which choice i has option o of y_t,c = x_i,o
                sum of cost_t(c) y_t,c <= limit

With x whole, y is whole, too (the second line leaves each term one combination). Solved by HiGHS through `scipy.optimize.milp`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from graphopt.searching.problem import Assignment, Problem
from graphopt.utils.silence import silent

SECONDS = 20.0  # after which the best found so far is taken
GAP = 1e-3  # of the damage: a solution that is no further from the best


def exact(problem: Problem, gap: float = GAP, seconds: float = SECONDS) -> Assignment | None:
    """The best assignment, up to a share `gap` of its damage, or, once the seconds are over, the best that was found; None where
    nothing keeps the limits."""
    model = _Model(problem)
    with silent():
        found = milp(
            model.objective,
            constraints=model.constraints(),
            integrality=model.whole,
            bounds=Bounds(0, 1),
            options={"time_limit": seconds, "mip_rel_gap": gap},
        )
    if found.x is None:
        return None
    chosen = [int(np.argmax(found.x[start:end])) for start, end in model.spans]
    return tuple(chosen)


class _Model:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        ends = np.cumsum([len(choice.options) for choice in problem.choices])
        self.spans = [
            (int(end) - len(choice.options), int(end)) for choice, end in zip(problem.choices, ends, strict=True)
        ]
        self.limited = [(name, t) for name in problem.limits for t in range(len(problem.costs[name]))]
        self.starts: list[int] = []  # of each term's combinations
        self.combinations = []
        count = self.spans[-1][1] if self.spans else 0
        for name, t in self.limited:
            combinations = problem.options_of(problem.costs[name][t])
            self.starts.append(count)
            self.combinations.append(combinations)
            count += len(combinations)
        self.count = count
        damages = [option.damage for choice in problem.choices for option in choice.options]
        scaled = np.array(damages, dtype=float) / _typical(damages)
        self.objective = np.concatenate([scaled, np.zeros(count - len(damages))])
        self.whole = np.concatenate([np.ones(len(damages)), np.zeros(count - len(damages))])

    def constraints(self) -> list[LinearConstraint]:
        return [self._one_option(), self._agreement(), *self._limits()]

    def _one_option(self) -> LinearConstraint:
        rows = [(row, column) for row, (start, end) in enumerate(self.spans) for column in range(start, end)]
        return self._rows(rows, np.ones(len(rows)), len(self.spans), 1, 1)

    def _agreement(self) -> LinearConstraint:
        entries, values, row = [], [], 0
        for (name, t), start, combinations in zip(self.limited, self.starts, self.combinations, strict=True):
            for place, choice in enumerate(self.problem.costs[name][t].scope):
                first = self.spans[choice][0]
                for option in range(len(self.problem.choices[choice].options)):
                    entries.append((row, first + option))
                    values.append(-1.0)
                    for number, combination in enumerate(combinations):
                        if combination[place] == option:
                            entries.append((row, start + number))
                            values.append(1.0)
                    row += 1
        return self._rows(entries, np.array(values), row, 0, 0)

    def _limits(self) -> list[LinearConstraint]:
        found = []
        for name, limit in self.problem.limits.items():
            entries, values, fixed = [], [], 0.0
            for (other, t), start, combinations in zip(self.limited, self.starts, self.combinations, strict=True):
                if other == name:
                    costs = [self.problem.term(name, t, combination) for combination in combinations]
                    if not self.problem.costs[name][t].scope:
                        fixed += costs[0]
                        continue
                    entries += [(0, start + number) for number in range(len(combinations))]
                    values += costs
            scaled = np.array(values) / limit  # HiGHS has absolute tolerances
            found.append(self._rows(entries, scaled, 1, -np.inf, 1 - fixed / limit))
        return found

    def _rows(
        self, entries: list[tuple[int, int]], values: np.ndarray, count: int, low: float, high: float
    ) -> LinearConstraint:
        rows, columns = np.array(entries, dtype=np.int64).reshape(-1, 2).T
        return LinearConstraint(coo_array((values, (rows, columns)), shape=(count, self.count)).tocsr(), low, high)


def _typical(damages: list[float]) -> float:
    """A size that the objective is about: HiGHS has absolute tolerances, and damages may be millionths."""
    return float(np.median([damage for damage in damages if damage > 0] or [1.0]))
