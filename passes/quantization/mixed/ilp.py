"""The assignment of least summed sensitivity under a budget, as an integer linear programme.

    minimize    sum_i sum_b  x_ib s_ib                    x_ib in {0, 1}: decision i takes choice b; s: sensitivity
    subject to  sum_b x_ib = 1                            for every i
                sum_i sum_b x_ib c_ib + sum_ij sum_bd z_ijbd c_ijbd  <=  budget
                sum_d z_ijbd = x_ib,  sum_b z_ijbd = x_jd     z_ijbd = x_ib x_jd, for the pairs that have a joint cost

z needs no integrality of its own: its sums are 0 or 1.

Papers: Hubara et al. 2020, "Improving Post Training Neural Quantization", section 3.4; Yao et al. 2021, "HAWQ-V3", section 3.3;
        Li et al. 2021, "BRECQ", section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from graphopt.passes.quantization.mixed.cost import Cost, Numbers
from graphopt.utils.silence import silent

SECONDS = 60.0


def solve(sensitivities: Sequence[Numbers], cost: Cost) -> tuple[int, ...] | None:
    """The best assignment; None where none meets the budget.

    Args:
        sensitivities: of every decision, that of each choice.
    """
    sizes = [len(s) for s in sensitivities]
    first = np.concatenate([[0], np.cumsum(sizes)])
    pairs = {pair: c for pair, c in cost.joint.items() if c.size}
    starts = dict(zip(pairs, first[-1] + np.cumsum([0, *(c.size for c in pairs.values())])[:-1], strict=True))
    columns = int(first[-1] + sum(c.size for c in pairs.values()))
    rows = len(sizes) + 1 + sum(sum(c.shape) for c in pairs.values())
    matrix, low, high = lil_matrix((rows, columns)), np.zeros(rows), np.zeros(rows)
    for i, size in enumerate(sizes):
        matrix[i, first[i] : first[i] + size] = 1
        low[i] = high[i] = 1
    scale = max(abs(cost.budget), 1e-30)
    row = len(sizes)
    matrix[row, : first[-1]] = np.concatenate(list(cost.single)) / scale
    low[row], high[row] = -np.inf, (cost.budget - cost.constant) / scale + 1e-9
    for (i, j), joint in pairs.items():
        z = np.arange(joint.size).reshape(joint.shape) + starts[i, j]
        matrix[row, z.ravel()] = joint.ravel() / scale
    row += 1
    for (i, j), joint in pairs.items():
        z = np.arange(joint.size).reshape(joint.shape) + starts[i, j]
        for decision, slices in ((i, z), (j, z.T)):
            for choice, slice_ in enumerate(slices):
                matrix[row, slice_] = 1
                matrix[row, first[decision] + choice] = -1
                row += 1
    objective = np.zeros(columns)
    objective[: first[-1]] = np.concatenate(list(sensitivities))
    objective /= max(_typical(sensitivities), 1e-30)
    with silent():
        found = milp(
            objective,
            constraints=LinearConstraint(matrix.tocsr(), low, high),
            integrality=np.arange(columns) < first[-1],
            bounds=Bounds(0, 1),
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-6},
        )
    if found.x is None:
        return None
    return tuple(int(found.x[start:end].argmax()) for start, end in pairwise(first))


def _typical(sensitivities: Sequence[Numbers]) -> float:
    """A size that the objective is about: the solver's tolerances are absolute."""
    return float(sum(np.median(s) for s in sensitivities)) / len(sensitivities)
