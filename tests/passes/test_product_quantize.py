"""Weights made of few vectors: how near they come, what a file holds, what trains, what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rewriting import apply, assert_close, capture
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes import Elastic, ProductQuantize, Prune, Simplify
from graphopt.passes.sharing.vectors import fitted, made
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=2, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(576, 50),
    ).eval()  # fmt: skip


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def quantized(width: int = 4, **options: Any) -> Graph:
    graph = capture(network(), images(2))
    run([ProductQuantize(width, **options)], graph)
    return graph


def test_vectors_are_as_good_as_those_of_scipy() -> None:
    weight = torch.randn(60, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(24, dtype=torch.float64)
    table, codes = fitted(weight, eye, 30, 3, torch.Generator().manual_seed(0))
    ours = float((made(table, codes) - weight).square().sum())
    rows = weight.reshape(-1, 3).numpy()
    found = [kmeans2(rows, 30, minit="++", rng=seed) for seed in range(3)]
    assert ours < 1.08 * min(float(np.square(rows - centres[labels]).sum()) for centres, labels in found)


def test_what_inputs_are_like_decides() -> None:
    """Errors where inputs are large count more, and entries are the best for their codes."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 16, dtype=torch.float64, generator=generator)
    x = torch.randn(500, 16, dtype=torch.float64, generator=generator) * torch.linspace(0.1, 3, 16)
    x = x @ torch.randn(16, 16, dtype=torch.float64, generator=generator)
    metric = x.T @ x / len(x)
    errors = []
    for each in (metric, torch.eye(16, dtype=torch.float64)):
        table, codes = fitted(weight, each, 12, 4, torch.Generator().manual_seed(0))
        errors.append(float(((made(table, codes) - weight) @ x.T).square().sum()))
    assert errors[0] < 0.8 * errors[1]
    table, codes = fitted(weight, metric, 12, 4, torch.Generator().manual_seed(0))
    spread = torch.zeros(40 * 16, 48, dtype=torch.float64)  # of each weight, which number of the table it is
    spread[torch.arange(640), codes.repeat_interleave(4, 1).flatten() * 4 + torch.arange(4).repeat(160)] = 1
    root = torch.linalg.cholesky(metric).T
    design = torch.einsum("ab,obn->oan", root, spread.reshape(40, 16, 48)).reshape(-1, 48)
    best = torch.linalg.lstsq(design, (weight @ root.T).reshape(-1, 1)).solution
    lost = [float((design @ t.reshape(-1, 1) - (weight @ root.T).reshape(-1, 1)).square().sum()) for t in (table, best)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_layers_are_codes_and_vectors() -> None:
    graph = quantized()
    state = graph.state_dict()
    codes, book = state["8.weight_codes"], state["8.weight_codebook"]
    assert (codes.dtype, codes.shape, book.shape) == (torch.uint8, (50, 144), (256, 4))
    assert state["0.weight_codes"].shape == (16, 3)  # a byte for each kernel
    assert state["4.weight_codes"].shape == (64, 8)
    wanted = book[codes.long()].reshape(50, 576)
    assert_close(graph(images()), torch.nn.functional.linear(
        nn.Sequential(*_with(state))(images()), wanted, state["8.bias"]))  # fmt: skip
    assert cost.weight_bytes(graph) < 0.5 * cost.weight_bytes(capture(network(), images(2)))
    assert apply(ProductQuantize(4), graph) == []


def _with(state: dict[str, Tensor]) -> list[nn.Module]:
    """The network up to its last layer, with the weights that codes stand for."""
    layers = list(network())[:-1]
    for number in (0, 2, 4):
        book, codes = state[f"{number}.weight_codebook"], state[f"{number}.weight_codes"]
        layers[number].weight.data = book[codes.long()].reshape(layers[number].weight.shape)
    return layers


def test_data_bring_answers_nearer_and_vectors_train() -> None:
    model, x = network(), images(256)
    graph, plain = quantized(8, data=[[x]]), quantized(8)
    other = images(64, 5)
    with torch.no_grad():
        near = [cost.sqnr(model(other), each(other)) for each in (plain, graph)]
    assert near[1] > near[0] + 0.5
    codes = graph.state_dict()["8.weight_codes"].clone()
    answers = model(x).detach()
    before = float((graph(x) - answers).square().mean().detach())
    graphopt.train(graph, (x, answers), loss="mse", epochs=4, batch_size=32, rate=1e-3)
    assert float((graph(x) - answers).square().mean().detach()) < before
    assert torch.equal(graph.state_dict()["8.weight_codes"], codes)


def test_the_file_holds_codes(tmp_path: Any) -> None:
    graph = quantized(8)
    run([Simplify()], graph)
    small, whole = (lower(g, find("x86")) for g in (graph, capture(network(), images(2))))
    assert small.size_bytes < 0.5 * whole.size_bytes
    assert_close(torch.as_tensor(small(images())), graph(images()), 1e-5)
    graph.save(tmp_path / "small.pt2")
    loaded = Graph.load(tmp_path / "small.pt2")
    assert torch.equal(loaded(images()), graph(images()))
    assert apply(ProductQuantize(8), loaded) == []


def test_layers_that_would_not_be_smaller_stay() -> None:
    graph = capture(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), torch.ones(2, 7))
    assert apply(ProductQuantize(), graph) == []


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="width must be a whole number of at least 2, got 1"):
        ProductQuantize(1)
    with pytest.raises(InputError, match="no weight matches 'stem'"):
        quantized(layers={"stem": None})
    graph = quantized(layers={"8*": None, "0*": 3})
    assert "8.weight" in graph.state_dict()
    assert "2.weight_codes" in graph.state_dict()


@pytest.mark.parametrize("change", [Prune(0.5), Elastic(widths=(0.5,), depths=False)])
def test_channels_of_weights_that_are_codes_stay(change: Any) -> None:
    """Nothing can be taken out, and that is said."""
    graph = quantized()
    before = str(graph)
    with pytest.raises(InputError, match=r"codebook|no layer|nothing"):
        change(graph)
    assert str(graph) == before


def test_channels_of_other_layers_are_pruned_beside_codes() -> None:
    graph = quantized(layers={"0*": None, "2*": None, "4*": None})
    codes = graph.tensor(next(node for node in graph.nodes if str(node.target).endswith("codes")))
    before = cost.macs(graph)
    run([Prune(0.9)], graph)
    assert cost.macs(graph) < before
    assert graph(images(3)).shape == (3, 50)
    after = graph.tensor(next(node for node in graph.nodes if str(node.target).endswith("codes")))
    assert torch.equal(after, codes)
