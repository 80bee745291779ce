"""How much the network's output suffers when one group is pruned, measured.

For each group alone: take units away in the order of least error, re-fit its readers, run the data, and compare the output
with the original's. Between the measured points, damage follows the readers' error as a power law (a line between logarithms).

    damage = mean over outputs of  sum |z' - z|^2 / sum |z|^2        z: one output on the data
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.im2col import from_matrix, weight_matrix
from graphopt.analysis.output_error import Probe, power_law
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.statistics import reader_moments
from graphopt.passes.pruning.surgeon import removal_order
from graphopt.utils.progress import progress

Array = npt.NDArray[np.float64]
LEVELS = (1 / 4, 1 / 2, 3 / 4)  # of the units removed


def measured_orders(
    graph: Graph, groups: Sequence[Group], data: Iterable[list[Tensor]], worth: Mapping[int, Array]
) -> dict[int, tuple[list[int], list[float]]]:
    """For each group by key: its units in the order they should go, and the damage to the output once each has gone.

    Args:
        graph: a float graph.
        groups: of its channels.
        data: batches.
        worth: of each group by key what removing each unit saves, [units]: the order weighs a unit's error by it.

    Groups that no layer reads directly have no entry.
    """
    probe = Probe(graph, data)
    found = {}
    with progress("measuring sensitivity", total=len(groups)) as advance:
        for group, readers, moments in reader_moments(graph, groups, data):
            if readers:
                weights = [weight_matrix(r.layer, graph.tensor(r.layer.weight)) for r in readers]
                problems = [
                    (weight, moments[r.layer.node].xx[0], r.units) for weight, r in zip(weights, readers, strict=True)
                ]
                levels = sorted({max(1, round(len(group) * level)) for level in LEVELS})
                names = [str(r.layer.weight.target) for r in readers]
                points = []
                order, fitted = removal_order(problems, group, worth[group.key], levels)
                for level, matrices in fitted.items():
                    changed = {
                        name: from_matrix(r.layer, m.to(w.dtype), graph.tensor(r.layer.weight))
                        for name, r, m, w in zip(names, readers, matrices, weights, strict=True)
                    }
                    points.append((order.error[level - 1], probe.damage(changed=changed)))
                damage = np.maximum.accumulate(power_law(points, np.asarray(order.error)))
                found[group.key] = order.units, damage.tolist()
            advance()
    return found
