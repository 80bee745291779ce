"""Training stages that stop early: what computing costs, and that it is paid attention to."""

from __future__ import annotations

import gated
import halting_networks as networks
import pytest
import torch

import graphopt
from graphopt import Graph
from graphopt.analysis.halting import blocks_run, halting_stages
from graphopt.execution.executor import Executor
from graphopt.passes import AddHalting
from graphopt.training.batches import Batch
from graphopt.training.compression import Run
from graphopt.training.halting import Ponder
from graphopt.utils.errors import InputError

X, Y = gated.images(64), torch.arange(64) % 5


def fresh(**options: object) -> Graph:
    graph = Graph.capture(networks.network(), X[:2])
    AddHalting(**options)(graph)  # type: ignore[arg-type]
    return graph


def test_the_cost_is_blocks_and_remainder_and_falls_where_h_rises() -> None:
    graph, ponder = networks.with_weights(fresh()), Ponder(0.5)
    ponder.attach(graph)
    values = Executor(graph, gradients=True).run(ponder.watched(graph), [X])
    leaves = {node: value.detach().requires_grad_() for node, value in values.items()}
    loss = ponder.loss(Run(Batch([X], Y, None), None, leaves))
    assert loss is not None
    expected = sum(0.5 * float((s.blocks(values) + s.remainder(values)).mean()) for s in halting_stages(graph))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(
        float(leaf.grad.min()) >= 0 for leaf in leaves.values() if leaf.grad is not None
    )  # smaller rests cost less
    assert any(bool(leaf.grad.any()) for leaf in leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize("what", ["samples", "positions"])
def test_what_costs_much_is_not_computed(what: str) -> None:
    dear, free = fresh(what=what), fresh(what=what)
    for graph, cost in ((dear, 3.0), (free, 0.0)):
        graphopt.train(graph, (X, Y), compress=[Ponder(cost)], epochs=6, rate=0.05, seed=0)
    assert sum(blocks_run(dear, [[X]]).values()) < sum(blocks_run(free, [[X]]).values())


def test_a_graph_without_such_stages_is_refused() -> None:
    with pytest.raises(InputError, match="AddHalting first"):
        graphopt.train(gated.residual(), (X, Y), compress=[Ponder()], epochs=1)
    with pytest.raises(InputError, match="at least 0"):
        Ponder(-1.0)
