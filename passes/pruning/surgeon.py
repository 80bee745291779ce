"""The order in which to remove units, where the layers that read them are fitted again after every removal.

A reader computes y = W x. Without the columns I of a unit, the best other columns (least squares over the data) leave an error
of

    cost(I) = tr( W_I  (H^-1_II)^-1  W_I^T )            H = E[x x^T], centred, plus a ridge

and become W - W_I (H^-1_II)^-1 H^-1_I,: ; the inverse without I follows by the same elimination. Greedy: remove the cheapest
unit, update, repeat. With several readers the costs, each relative to its output's power, add up.

Papers: Hassibi & Stork 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon"; for structures, Kurtić et
al. 2023, "ZipLM", section 3. The problem itself is that of ThiNet (Luo et al. 2017) and of He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks", here solved with the reconstruction inside the selection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Array
from graphopt.passes.pruning.elimination import Elimination


class Order(NamedTuple):
    """Units from the first to go to the last, and the relative error of the readers' outputs once each has gone."""

    units: list[int]
    error: list[float]


def removal_order(
    problems: list[tuple[Tensor, Tensor, Array]],
    group: Group,
    worth: npt.NDArray[np.float64] | None = None,
    levels: Collection[int] = (),
    advance: Callable[[], None] = lambda: None,
) -> tuple[Order, dict[int, list[Tensor]]]:
    """The greedy order of a group's units, as far as they can be removed.

    Units that no reader reads, such as the positions of queries and keys beside those of values, cannot be judged: they stay.

    Args:
        problems: of each reader the weight matrix [out, d], the centred second moments of its input rows [d, d] (float64),
            and the unit of each of the d columns (-1: none).
        group: says which units have to stay.
        worth: [units], what removing a unit is good for: the error is weighed by it. None: all the same.
        levels: numbers of removed units at which the fitted weights are wanted.
        advance: called after every unit.

    Returns:
        The order, and the fitted weight matrices of the readers at each level reached.
    """
    count = len(group)
    work = [Elimination(*problem, count) for problem in problems]
    read = np.isin(np.arange(count), [unit for _, _, owners in problems for unit in owners])
    left = np.ones(count, dtype=bool)
    value = torch.ones(count).double() if worth is None else torch.from_numpy(worth).double().clamp(min=1e-30)
    units: list[int] = []
    error: list[float] = []
    fitted = {}
    total = 0.0
    while len(spare := [unit for unit in group.spare(left) if read[unit]]):
        alive = torch.tensor(spare)
        costs = torch.stack([problem.costs(alive) for problem in work]).sum(0)
        best = int((costs / value[alive]).argmin())
        unit = int(alive[best])
        total += float(costs[best])
        for problem in work:
            problem.remove(unit)
        units.append(unit)
        error.append(total)
        left[unit] = False
        advance()
        if len(units) in levels:
            fitted[len(units)] = [problem.fitted() for problem in work]
    return Order(units, error), fitted
