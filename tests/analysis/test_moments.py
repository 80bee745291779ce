"""Moments of a layer's inputs are right whatever their mean is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphopt
from graphopt.analysis.moments import Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer


def layer_of(model: nn.Module, x: torch.Tensor) -> Layer:
    return next(layer for node in Graph.capture(model.eval(), x).nodes if (layer := Layer.of(node)))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_moments_are_those_of_float64(mean: float, centred: bool) -> None:
    x = (torch.randn(50, 6, dtype=torch.float64) * 0.01 + mean).float()
    t = torch.randn(50, 1, 3) * 0.1 - mean
    moments = Moments(layer_of(nn.Linear(6, 3), x), centred=centred)
    for start in range(0, 50, 20):
        moments.update(x[start : start + 20], t[start : start + 20])
    rows, wanted = x.double().numpy(), t[:, 0].double().numpy()
    middles = (rows.mean(0), wanted.mean(0)) if centred else (np.zeros(6), np.zeros(3))
    xx = (rows - middles[0]).T @ (rows - middles[0]) / 50
    xt = (rows - middles[0]).T @ (wanted - middles[1]) / 50
    np.testing.assert_allclose(moments.mean_x[0], rows.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.mean_t[0], wanted.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.xx[0], xx, rtol=1e-5, atol=1e-5 * np.abs(xx).max())
    np.testing.assert_allclose(moments.xt[0], xt, rtol=1e-5, atol=1e-5 * np.abs(xt).max())


def test_codes_are_chosen_for_inputs_that_hardly_vary_around_a_large_mean() -> None:
    x = 1000 + 0.05 * torch.randn(16, 12)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    result = graphopt.optimize(model, x, target="x86", calibration=[x], rounding="gptq", measure=False)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 20
