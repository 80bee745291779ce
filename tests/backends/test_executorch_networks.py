"""Quantized networks through ExecuTorch: every layer is delegated, and each kernel answers the codes of the simulation."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from xnnpack_networks import INTEGER, MIXED, Network, network

import graphopt

pytest.importorskip("executorch", reason="the ExecuTorch backend needs graphopt[executorch]")

from graphopt.backends.executorch import audit

QUICK = {"residual", "seven joined", "pad"}
STAYS_IN_FLOAT = {"transposed", "attention"}  # layers, or products, that have no integer kernels
NETWORKS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough) for name in INTEGER | MIXED]


@cache
def made(name: str) -> tuple[Network, Any]:
    given = network(name)
    example = tuple(x[:2] for x in given.inputs)
    return given, graphopt.optimize(
        given.model, example, target="executorch", calibration=[given.inputs], measure=False
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kernel_answers_the_codes_of_the_simulation(name: str) -> None:
    (_, inputs), result = made(name)
    found = graphopt.simulate(result.graph, "executorch").mismatches(result.artifact, *inputs)
    assert found
    assert [str(line) for line in found if line.differing] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_the_simulation(name: str) -> None:
    """To the last bit where nothing but codes is computed with; else up to the rounding of float kernels, or a step."""
    (_, inputs), result = made(name)
    assert result.artifact.exact == (name in INTEGER)
    ours, simulated = result.artifact(*inputs), graphopt.simulate(result.graph, "executorch")(*inputs)
    for mine, theirs in zip(pytree.tree_leaves(ours), pytree.tree_leaves(simulated), strict=True):
        if result.artifact.exact:
            assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=float(theirs.abs().max()) / 128)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_quantized_layer_is_delegated(name: str) -> None:
    given, result = made(name)
    found = audit(result.artifact)
    assert found.share == 1 or name in STAYS_IN_FLOAT
    assert found.floating or name in INTEGER
    assert all(each.reason for each in found.floating)
    answers, expected = (pytree.tree_leaves(f(*given.inputs)) for f in (result.artifact, given.model))
    for mine, theirs in zip(answers, expected, strict=True):
        assert float((mine - theirs).detach().abs().max()) < 0.1 * float(theirs.detach().abs().max())
