"""What trained has its own names afterwards, whatever stood in its place."""

from __future__ import annotations

import pytest
from training import X, Y, few_bits, simulated

from graphopt.training import QuantizationAware, train
from graphopt.training.quantization import METHODS


@pytest.mark.many
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_scales_have_the_names_that_they_had(method: str, norms: bool) -> None:
    graph = simulated(few_bits(3, 4))
    before = {name: t.shape for name, t in graph.state_dict().items()}
    train(graph, (X, Y), compress=[QuantizationAware(method, batch_norms=norms)], rate=1e-2)
    assert {name: t.shape for name, t in graph.state_dict().items()} == before
