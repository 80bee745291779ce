"""How much the network's output suffers when one group is pruned, measured.

For each group alone: take units away in the order of least error, re-fit its readers, run the data, and compare the output
with the original's. Between the measured points, damage follows the readers' error as a power law (a line between logarithms).

    damage = mean over outputs of  sum |z' - z|^2 / sum |z|^2        z: one output on the data
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.im2col import from_matrix, weight_matrix
from graphopt.analysis.moments import Moments
from graphopt.analysis.output_error import Probe, power_law
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.readers import Reader
from graphopt.passes.pruning.statistics import reader_moments
from graphopt.passes.pruning.surgeon import removal_order
from graphopt.utils.progress import progress

LOG = logging.getLogger(__name__)

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
    with progress("measuring sensitivity", total=sum(map(len, groups))) as advance:
        for number, (group, readers, moments) in enumerate(reader_moments(graph, groups, data), 1):
            went = 0
            if readers:
                found[group.key] = _measured(graph, group, readers, moments, worth[group.key], probe, advance)
                went = len(found[group.key][0])
            for _ in range(len(group) - went):  # that cannot go
                advance()
            LOG.info("measured %d of %d groups: %s, %d units", number, len(groups), group.name, len(group))
    return found


def _measured(
    graph: Graph, group: Group, readers: Sequence[Reader], moments: Mapping[Node, Moments], worth: Array, probe: Probe,
    advance: Callable[[], None],
) -> tuple[list[int], list[float]]:  # fmt: skip
    """The units of one group in the order they should go, and the damage once each has gone; `advance` counts them."""
    weights = [weight_matrix(r.layer, graph.tensor(r.layer.weight)) for r in readers]
    problems = [(weight, moments[r.layer.node].xx[0], r.units) for weight, r in zip(weights, readers, strict=True)]
    levels = sorted({max(1, round(len(group) * level)) for level in LEVELS})
    names = [str(r.layer.weight.target) for r in readers]
    order, fitted = removal_order(problems, group, worth, levels, advance)
    points = []
    for level, matrices in fitted.items():
        changed = {
            name: from_matrix(r.layer, m.to(w.dtype), graph.tensor(r.layer.weight))
            for name, r, m, w in zip(names, readers, matrices, weights, strict=True)
        }
        points.append((order.error[level - 1], probe.damage(changed=changed)))
    damage = np.maximum.accumulate(power_law(points, np.asarray(order.error)))
    return order.units, damage.tolist()
