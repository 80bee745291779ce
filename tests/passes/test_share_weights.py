"""Weights that share values: how many, which ones, chosen for a size and on data."""

from __future__ import annotations

import pytest
import torch
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.fitting.priced import entropy
from graphopt.formats import FAKE_QUANTIZE_TABLE
from graphopt.formats.codebook import k_means
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.ir.quantizers import quantizer_of
from graphopt.passes.sharing import ShareWeights
from graphopt.passes.sparsity import Sparsify
from graphopt.targets import find
from graphopt.utils.errors import InputError


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, groups=2), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def images(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=12, mode="bilinear")


def shared(*passes: ShareWeights | Sparsify) -> tuple[nn.Module, Graph]:
    model = Network()
    graph = capture(model, images(2))
    for each in passes:
        apply(each, graph)
    return model, graph


def codes(graph: Graph) -> dict[str, Tensor]:
    found = graph.calls(FAKE_QUANTIZE_TABLE)
    return {str(n.args[0].target): quantizer_of(graph, n).quantize(graph.tensor(n.args[0])) for n in found}


def total(graph: Graph) -> float:
    return sum(entropy(each) / 8 for each in codes(graph).values())


@pytest.mark.parametrize("start", ["linear", "density", "random", "cube root"])
def test_each_layer_has_so_many_values(start: str) -> None:
    model, graph = shared(ShareWeights(3, start=start))  # type: ignore[arg-type]
    assert {name: len(each.unique()) for name, each in codes(graph).items()} == {
        "conv1.weight": 8, "conv2.weight": 8, "head.weight": 8,
    }  # fmt: skip
    assert cost.sqnr(model(images(8)).detach(), graph(images(8)).detach()) > 10


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_starts_are_those_of_the_paper(start: str) -> None:
    """One turn of k-means around them; zero is one of them."""
    x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)).double()
    table = k_means(x, torch.ones_like(x), 16, start, seed=1)[0]  # type: ignore[arg-type]
    assert bool((table == 0).any())
    assert table.tolist() == sorted(table.tolist())
    error = (x[0, :, None] - table.double()).abs().amin(1).square().mean()
    assert error < 0.015  # of a variance of 1; 16 even steps over all of it lose 0.017


def test_a_linear_start_keeps_large_weights() -> None:
    """Few weights are large, and they matter: Han et al., figure 6."""
    x = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)), torch.tensor([8.0])])[None].double()
    far = [float((k_means(x, torch.ones_like(x), 8, s)[0] - 8).abs().min()) for s in ("linear", "density")]  # type: ignore[arg-type]
    assert far[0] < 0.01 < 1 < far[1]


def test_data_beat_the_nearest_values() -> None:
    data, unseen = [[images(64)]], images(64, seed=9)
    model, nearest = shared(ShareWeights(3))
    _, chosen = shared(ShareWeights(3, data=data))
    wanted = model(unseen).detach()
    gain = cost.sqnr(wanted, chosen(unseen).detach()) - cost.sqnr(wanted, nearest(unseen).detach())
    assert gain > 4  # dB


def test_uniform_values_with_a_price_take_fewer_bits_and_answer_better() -> None:
    data, unseen = [[images(64)]], images(64, seed=9)
    model, nearest = shared(ShareWeights(3, values="uniform"))
    _, chosen = shared(ShareWeights(3, values="uniform", data=data))
    wanted = model(unseen).detach()
    assert total(chosen) < 0.98 * total(nearest)
    assert cost.sqnr(wanted, chosen(unseen).detach()) > cost.sqnr(wanted, nearest(unseen).detach()) + 3


@pytest.mark.parametrize("values", ["k-means", "uniform"])
def test_a_size_is_kept_at_less_damage_than_equal_bits(values: str) -> None:
    data, unseen = [[images(64)]], images(64, seed=9)
    model, equal = shared(ShareWeights(3, values=values))  # type: ignore[arg-type]
    size = total(equal) + sum(4 * len(each.unique()) + 16 for each in codes(equal).values())
    _, fitted = shared(ShareWeights(values=values, data=data, size=size))  # type: ignore[arg-type]
    found = total(fitted) + sum(4 * len(each.unique()) + 16 for each in codes(fitted).values())
    assert found <= 1.02 * size
    assert cost.sqnr(model(unseen).detach(), fitted(unseen).detach()) > 15


def test_a_size_out_of_reach_says_what_is_in_reach() -> None:
    with pytest.raises(InputError, match="bytes can be brought from"):
        shared(ShareWeights(data=[[images(8)]], size=100))


@pytest.mark.parametrize("data", [None, [[images(32)]]])
def test_pruned_weights_stay_zero(data: list[list[Tensor]] | None) -> None:
    _, graph = shared(Sparsify(0.8), ShareWeights(4, data=data))
    assert zero_share(graph) >= 0.8 - 0.002


def test_layers_have_bits_of_their_own() -> None:
    _, graph = shared(ShareWeights(4, layers={"conv1.*": 2, "head.*": None}))
    assert {name: len(each.unique()) for name, each in codes(graph).items()} == {"conv1.weight": 4, "conv2.weight": 16}
    with pytest.raises(InputError, match="no weight matches 'stem"):
        shared(ShareWeights(layers={"stem*": 3}))


def test_embeddings_share_values_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 8))
    x = torch.randint(0, 50, (4, 6))
    graph = capture(model, x)
    assert len(apply(ShareWeights(3, data=[[x]]), graph)) == 2
    assert len(graph.tensor(graph.calls(FAKE_QUANTIZE_TABLE)[0]).unique()) == 8


def test_the_artifact_answers_the_same_and_its_file_is_small() -> None:
    model, graph = shared(Sparsify(0.7), ShareWeights(3))
    artifact = lower(graph, find("x86"))
    plain = artifact.size_bytes
    artifact.store()
    x = images(4)
    assert torch.allclose(artifact(x), graph(x), atol=1e-5)
    assert artifact.size_bytes < 0.5 * plain
    text = graphopt.optimize(
        model, x, calibration=x, passes="sparsify{sparsity=0.7}, share-weights{bits=3}", storage="huffman"
    )
    assert text.report.size_after is not None
    assert text.report.size_after < 0.5 * plain


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 9}, "bits must be from 2 to 8, got 9"),
        ({"layers": {"a": 1}}, "bits must be from 2 to 8, got 1"),
        ({"values": "free"}, "values must be one of k-means, uniform"),
        ({"start": "zero"}, "start must be one of cube root, linear, density, random"),
        ({"size": 1000}, "takes data="),
        ({"size": -1, "data": []}, "over 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ShareWeights(**options)  # type: ignore[arg-type]
