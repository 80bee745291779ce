"""Ranges by what the readers of a value make of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model
from torch import Tensor, nn

from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import find


def loud_and_unread() -> tuple[nn.Module, Tensor]:
    """One channel of long tails that the next layer hardly reads, beside others it lives by."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4)[:, :, None, None] * torch.tensor([1.0, 1, 1, 8])[:, None, None, None])
        model[1].weight[:, 3] = 1e-4
    return model, torch.randn(64, 4, 8, 8)


@pytest.mark.thorough
def test_output_mse_spends_codes_on_what_the_next_layer_reads() -> None:
    model, x = loud_and_unread()
    four = Format(4, signed=False, symmetric=False)

    def error(estimator: str) -> float:
        graph = Graph.capture(model, x[:1])
        Quantize(find("x86"), [[x]], estimator=estimator, formats={"0": LayerFormat(None, four)})(graph)
        graph.refresh()
        with torch.no_grad():
            return float((graph(x) - model(x)).square().mean())

    errors = {name: error(name) for name in ("minmax", "percentile", "mse", "entropy", "aciq", "output_mse")}
    assert errors["output_mse"] <= 1.02 * min(errors.values())
    assert errors["output_mse"] < 0.6 * errors["mse"]


def test_output_mse_needs_its_data_only_once() -> None:
    model, x = loud_and_unread()
    graph = Graph.capture(model, x[:1])
    assert Quantize(find("x86"), iter([[x]]), estimator="output_mse")(graph)


@pytest.mark.parametrize("name", ["residual", "concat", "hard-swish", "pooled"])
def test_output_mse_takes_every_kind_of_reader(name: str) -> None:
    bodies = {
        "residual": lambda m, x: m.head(F.relu(m.stem(x) + m.other(m.stem(x)))),
        "concat": lambda m, x: m.wide(torch.cat([F.relu6(m.stem(x)), m.other(m.stem(x))], 1)),
        "hard-swish": lambda m, x: m.head(m.stem(x) * F.hardsigmoid(m.stem(x))),
        "pooled": lambda m, x: m.head(F.max_pool2d(F.relu(m.stem(x)), 2)).flatten(1),
    }
    model = Model(
        bodies[name],
        stem=nn.Conv2d(3, 4, 1),
        other=nn.Conv2d(4, 4, 1),
        head=nn.Conv2d(4, 2, 1),
        wide=nn.Conv2d(8, 2, 1),
    )
    x = torch.randn(16, 3, 8, 8)
    graph = Graph.capture(model.eval(), x[:1])
    assert Quantize(find("x86"), [[x]], estimator="output_mse")(graph)
    graph.refresh()
    with torch.no_grad():
        wanted = model(x)
        assert float((graph(x) - wanted).square().mean()) < 1e-3 * float(wanted.square().mean())
