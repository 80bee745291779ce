"""Embedding tables replaced by something smaller: how near each method comes, beside independent solutions, and refusals."""

from __future__ import annotations

import importlib.util
import random
import string
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
from graphopt.passes import ReplaceEmbedding
from graphopt.passes.embeddings import characters
from graphopt.passes.embeddings.compositional import PRIME, Hashed, conjugate_gradients
from graphopt.passes.embeddings.low_rank import Blocks, LowRank
from graphopt.passes.embeddings.product import Product, k_means
from graphopt.passes.embeddings.replace_embedding import METHODS
from graphopt.passes.embeddings.replacement import Wanted
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

ROWS, WIDTH = 1200, 24
TOKENS = ["".join(random.Random(n).choices(string.ascii_lowercase, k=2 + n % 9)) for n in range(ROWS)]


def table(noise: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rank = torch.randn(ROWS, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    return rank + noise * torch.randn(ROWS, WIDTH, generator=generator) + 1.0


class Network(nn.Module):
    def __init__(self, rows: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.emb, self.head = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 5)
        self.emb.weight.data = table() if rows is None else rows

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.emb(ids)).mean(1))


def ids(count: int = 64, seed: int = 0) -> Tensor:
    """Small ids are frequent."""
    return (torch.rand(count, 7, generator=torch.Generator().manual_seed(seed)) ** 3 * ROWS).long()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "STEPS", 150)


def replaced(method: Any, keep: float = 0.4, **options: Any) -> Graph:
    graph = capture(Network(), ids(2))
    options = {"data": [[ids()]], "tokens": TOKENS, **options}
    run([ReplaceEmbedding(method, keep, **options)], graph)
    return graph


def wanted(keep: float, weights: Tensor | None = None, rows: Tensor | None = None) -> Wanted:
    rows = table() if rows is None else rows
    weights = torch.ones(len(rows)) if weights is None else weights
    return Wanted(rows.double(), (weights / weights.mean()).double(), keep * 4 * rows.numel(), known=True)


def computed(made: Any) -> Tensor:
    """All rows, by the calls that a replacement emits."""
    graph = capture(nn.Sequential(nn.Embedding(ROWS, WIDTH)), torch.arange(2)[:, None])
    pass_ = ReplaceEmbedding("svd", 0.5)
    (place,) = pass_.tables(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made), "fit", classmethod(lambda cls, wanted: made))
        patch.setattr("graphopt.passes.embeddings.replace_embedding.METHODS", {"svd": type(made)})
        pass_.replace(graph, place, None)
    graph.refresh()
    found: Tensor = graph(torch.arange(ROWS).reshape(-1, 1))[:, 0].detach()
    return found


def lost(found: Tensor, weights: Tensor | None = None) -> float:
    weights = torch.ones(ROWS) if weights is None else weights
    return float((weights[:, None] * (found - table()).double().square()).sum())


# ---- Every method ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_it_is_as_small_as_it_was_told_and_answers_alike(method: Any) -> None:
    graph, model = replaced(method), Network()
    table_bytes = 4 * ROWS * WIDTH
    head = 4 * (WIDTH + 1) * 5
    assert 0.2 * table_bytes < cost.weight_bytes(graph) - head <= 0.4 * table_bytes
    with torch.no_grad():
        near = cost.sqnr(model(ids(50, 3)), graph(ids(50, 3)))
    assert near > {"quotient": 3, "hashed": 5, "characters": -6}.get(
        method, 15
    )  # dB; random names say nothing of their rows
    assert apply(ReplaceEmbedding(method, 0.4, data=[[ids()]], tokens=TOKENS), graph) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_runtimes_answer_what_the_graph_answers(method: Any) -> None:
    graph, x = replaced(method), ids(9, 5)
    assert_close(torch.as_tensor(lower(graph, find("x86"))(x)), graph(x), 1e-5)


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_tvm_answers_what_the_graph_answers(method: Any) -> None:
    from tvm_lowering import lower_through_tvm

    graph, x = replaced(method), ids(3, 5)
    artifact = lower_through_tvm(graph, find("tvm-x86"))
    found = torch.cat([torch.as_tensor(artifact(part)) for part in x.split(1)])
    assert_close(found, graph(x), 1e-5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_put_in_trains(method: Any) -> None:
    graph, x = replaced(method, 0.3), ids(256, 8)
    answers = Network()(x).detach()
    before = float((graph(x) - answers).square().mean().detach())
    graphopt.train(graph, (x, answers), loss="mse", epochs=6, batch_size=32, rate=3e-3)
    assert float((graph(x) - answers).square().mean().detach()) < 0.8 * before


@pytest.mark.usefixtures("quick")
def test_saved_it_is_still_known(tmp_path: Any) -> None:
    graph = replaced("product")
    graph.save(tmp_path / "small.pt2")
    loaded = Graph.load(tmp_path / "small.pt2")
    assert torch.equal(loaded(ids()), graph(ids()))
    assert ReplaceEmbedding("product", 0.4)(loaded) == []


# ---- Single methods -------------------------------------------------------------------------------------------------


def test_factors_are_the_best_of_their_rank() -> None:
    weights = torch.linspace(0.1, 3, ROWS)
    made = LowRank.fit(wanted(0.3, weights))
    rank = made.coordinates.shape[1]
    assert (
        4 * (ROWS * rank + WIDTH * rank + WIDTH) <= 0.3 * 4 * ROWS * WIDTH < 4 * (ROWS + WIDTH) * (rank + 1) + 4 * WIDTH
    )
    rows, w = table().double().numpy(), (weights / weights.mean()).double().numpy()
    scaled = np.sqrt(w)[:, None] * (rows - (w @ rows) / w.sum())
    best = np.square(np.linalg.svd(scaled, compute_uv=False)[rank:]).sum()
    assert lost(computed(made), weights / weights.mean()) == pytest.approx(best, rel=1e-4)


def test_frequent_tokens_have_larger_ranks() -> None:
    """Of rows in all directions: words as frequent as one over their place (Zipf)."""
    counts = 1000 / (torch.arange(ROWS) + 1.0)
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))
    made, plain = (method.fit(wanted(0.3, counts, rows)) for method in (Blocks, LowRank))
    assert isinstance(made, Blocks)
    ranks = [thin.shape[1] for thin in made.coordinates]
    assert ranks[1] > ranks[2] > ranks[3]  # the first has 19 tokens, and no larger rank
    assert ranks[0] == 18
    assert made.bytes <= 0.3 * 4 * ROWS * WIDTH
    errors = [float((counts[:, None] * (computed(each) - rows).square()).sum()) for each in (made, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_every_token_finds_its_own_block() -> None:
    """With ranks that are nearly full all rows are nearly there."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(4)) + 1.0
    found = computed(Blocks.fit(wanted(1.2, order)))
    np.testing.assert_allclose(found.numpy(), table().numpy(), atol=1e-4)


def test_rows_that_are_products_are_found_exactly() -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.rand(n, WIDTH, generator=generator) + 0.5 for n in (3, 400))
    rows = (left[:, None] * right).reshape(ROWS, WIDTH)
    graph = capture(Network(rows), ids(2))
    run([ReplaceEmbedding("quotient", (400 + 3) / ROWS + 1e-6)], graph)
    assert_close(graph(ids()), Network(rows)(ids()), 1e-5)


def test_hashes_are_those_of_the_head_of_the_file() -> None:
    made = Hashed.fit(wanted(0.4))
    shared, importance = made.shared.numpy(), made.importance.numpy()
    for token in (0, 1, 777, ROWS - 1):
        places = [
            (int(a) * token + int(b)) % PRIME % len(shared) for a, b in zip(made.factors, made.shifts, strict=True)
        ]
        row = sum(p * shared[place] for p, place in zip(importance[token], places, strict=True))
        np.testing.assert_allclose(computed(made)[token].numpy(), row, rtol=1e-4, atol=1e-5)


def test_conjugate_gradients_solve() -> None:
    matrix = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    system = matrix @ matrix.T + torch.eye(12)
    wanted_ = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = conjugate_gradients(lambda x: system @ x, wanted_, torch.zeros(12, 3, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(system.numpy(), wanted_.numpy()), rtol=1e-4, atol=1e-6)


def test_codebooks_are_as_good_as_those_of_scipy() -> None:
    rows = table().double()[:, :3]
    centres, codes = k_means(rows, torch.ones(ROWS).double(), 40, torch.Generator().manual_seed(0))
    ours = float((rows - centres[codes]).square().sum())
    theirs = min(
        float(np.square(rows.numpy() - found[label]).sum())
        for found, label in (kmeans2(rows.numpy(), 40, minit="++", rng=seed) for seed in range(3))
    )
    assert ours < 1.1 * theirs
    nearest = torch.cdist(rows, centres).argmin(1)
    assert (nearest == codes).float().mean() > 0.999


def test_no_centre_is_idle_and_few_rows_have_one_each() -> None:
    rows = torch.cat([torch.zeros(500, 2), torch.tensor([[5.0, 0.0], [0.0, 5.0], [9.0, 9.0]])]).double()
    centres, codes = k_means(rows, torch.ones(503).double(), 4, torch.Generator().manual_seed(0))
    assert float((rows - centres[codes]).abs().max()) == 0


def test_pieces_are_as_many_as_fit_and_divide_the_width() -> None:
    made = Product.fit(wanted(0.4))
    assert made.codes.dtype == torch.uint8
    pieces = made.codes.shape[1]
    larger = min(g for g in range(pieces + 1, WIDTH + 1) if WIDTH % g == 0)
    assert WIDTH % pieces == 0
    assert made.bytes <= 0.4 * 4 * ROWS * WIDTH < made.bytes + (ROWS + 8) * (larger - pieces)
    found = computed(made)
    assert len(found[:, : WIDTH // pieces].unique(dim=0)) <= 256


def test_frequent_tokens_come_nearer() -> None:
    counts = torch.ones(ROWS)
    counts[::6] = 50
    weighted, plain = (computed(Product.fit(wanted(0.3, w))) for w in (counts, None))
    errors = [float((found - table())[::6].square().mean()) for found in (weighted, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_characters_share_what_is_written_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is the sum of a vector for each letter is learned, where that of random rows is not."""
    monkeypatch.setattr(characters, "STEPS", 400)
    letters = torch.randn(26, WIDTH, generator=torch.Generator().manual_seed(3))
    rows = torch.stack([letters[[ord(c) - 97 for c in set(token)]].sum(0) for token in TOKENS])
    graph = capture(Network(rows), ids(2))
    run([ReplaceEmbedding("characters", 0.5, tokens=TOKENS)], graph)
    x = ids(50, 3)
    with torch.no_grad():
        assert cost.sqnr(Network(rows)(x), graph(x)) > 6


def test_spelling_keeps_the_frequent_characters() -> None:
    found = characters.spelled(["ab", "a", "abcdefghijklmnopqrstuvwxyz"])
    assert found.shape == (3, characters.LENGTH)
    assert found[0, :3].tolist() == [1, 2, 0]
    assert found[1, :2].tolist() == [1, 0]
    assert (found[2] > 0).all()
    many = characters.spelled([chr(300 + n) for n in range(400)] + [chr(300)])
    assert int(many.max()) == characters.ALPHABET
    assert int((many[:, 0] == characters.ALPHABET).sum()) == 400 - (characters.ALPHABET - 1)


# ---- What is left alone, and refused --------------------------------------------------------------------------------


class Shared(nn.Module):
    """The output layer has the table's weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(ROWS, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.emb(ids)) @ self.emb.weight.T


class Several(nn.Module):
    """One table for two inputs, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(ROWS, WIDTH), nn.Embedding(7, WIDTH)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.words(a) + self.words(b) + self.places(torch.arange(7))


def test_a_table_that_an_output_layer_reads_is_left_alone() -> None:
    assert ReplaceEmbedding("svd")(capture(Shared(), ids(2))) == []


def test_a_table_of_several_readers_is_replaced_once_and_small_ones_stay() -> None:
    model = Several().eval()
    graph = capture(model, ids(2), ids(2, 1))
    (step,) = run([ReplaceEmbedding("product", 0.4, data=[[ids(), ids(64, 1)]])], graph)
    assert [site for site, _ in step.changes] == ["words.weight"]
    names = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    assert names.count("words.weight_codes") == 1
    assert "places.weight" in names
    (step,) = run([ReplaceEmbedding("svd", 0.5, layers="places")], graph)
    assert [site for site, _ in step.changes] == ["places.weight"]


def test_what_cannot_be_is_refused() -> None:
    for options, said in (
        ({"method": "svdd"}, "unknown method 'svdd'; did you mean 'svd'"),
        ({"keep": 1.0}, "keep must be over 0 and under 1"),
        ({"layers": "positions"}, "'positions' matches no embedding table; there are: emb.weight"),
        ({"method": "blocks", "data": None}, "give data, or take 'svd'"),
        ({"method": "characters", "tokens": None}, "text of each token"),
        ({"method": "characters", "tokens": TOKENS[:5]}, "5 texts, the table has 1200 rows"),
        *(({"method": method, "keep": 0.001}, f"'{method}' takes at least") for method in METHODS),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            replaced(**{"method": "svd", **options})
