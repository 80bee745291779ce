"""Training of mixtures of experts: noise, gates, both losses against loops from the paper, and a plain graph at the end."""

from __future__ import annotations

import math

import gated
import pytest
import torch
from halting_networks import Tokens
from torch import Tensor

import graphopt
from graphopt import Graph
from graphopt.analysis.experts import experts_taken, mixtures
from graphopt.execution.executor import Executor
from graphopt.passes import AddExperts, FoldBatchNorm, Quantize, RemoveGates
from graphopt.targets import find
from graphopt.training import QuantizationAware
from graphopt.training.batches import Batch
from graphopt.training.experts import NoisyTopK, gates_of, load_of, one_expert, variation
from graphopt.training.forward import Forward
from graphopt.utils.errors import InputError

X, Y = gated.images(64), torch.arange(64) % 5


def fresh(take: int = 1, **options: object) -> Graph:
    graph = gated.residual()
    AddExperts(take=take, **options)(graph)  # type: ignore[arg-type]
    return graph


def cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def papers_gates(row: list[float], k: int) -> list[float]:
    """Equations 3 and 5: all but the k largest become minus infinity, then softmax."""
    kept = sorted(row, reverse=True)[:k]
    powers = [math.exp(h) if h in kept else 0.0 for h in row]
    return [p / sum(powers) for p in powers]


def papers_load(clean: list[float], deviation: list[float], noisy: list[float], k: int) -> list[float]:
    """Equations 8 and 9: kth_excluding(H, k, i) is the k-th largest of H without its i-th component."""
    found = []
    for i in range(len(clean)):
        others = sorted((h for j, h in enumerate(noisy) if j != i), reverse=True)
        found.append(cdf((clean[i] - others[k - 1]) / deviation[i]))
    return found


def papers_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


@pytest.mark.parametrize("k", [1, 2, 3])
def test_formulas_are_the_papers(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    clean, noise = (torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    deviation = torch.rand(50, 4, generator=generator, dtype=torch.float64) + 0.1
    noisy = clean + noise * deviation
    rows = [*zip(clean.tolist(), deviation.tolist(), noisy.tolist(), strict=True)]
    torch.testing.assert_close(
        gates_of(noisy, k), torch.tensor([papers_gates(h, k) for _, _, h in rows], dtype=torch.float64)
    )
    load = torch.tensor([papers_load(*row, k) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(load_of(clean, deviation, noisy, k), load)
    sums = load.sum(0)
    assert float(variation(sums)) == pytest.approx(papers_variation(sums.tolist()))
    assert float(variation(torch.full((4,), 3.0))) == 0.0


def test_load_is_how_often_an_expert_would_be_taken_with_other_noise() -> None:
    torch.manual_seed(0)
    clean, deviation = torch.randn(1, 4), torch.rand(1, 4) + 0.5
    noisy = clean + torch.randn(1, 4) * deviation
    for e in range(4):
        again = noisy.repeat(40000, 1)
        again[:, e] = clean[0, e] + torch.randn(40000) * deviation[0, e]
        often = float((again.topk(2, -1).indices == e).any(-1).float().mean())
        assert float(load_of(clean, deviation, noisy, 2)[0, e]) == pytest.approx(often, abs=0.01)


def test_the_gradient_of_one_expert_is_that_of_the_softmax() -> None:
    scores, wanted = torch.tensor([[0.3, -1.0, 0.9]], requires_grad=True), torch.tensor([[1.0, 2.0, -3.0]])
    gates = one_expert(scores.argmax(-1, keepdim=True), torch.arange(3), scores)
    assert gates.tolist() == [[0.0, 0.0, 1.0]]
    (gates * wanted).sum().backward()
    (same := scores.detach().clone().requires_grad_()).softmax(-1).mul(wanted).sum().backward()
    torch.testing.assert_close(scores.grad, same.grad)


@pytest.mark.parametrize("take", [1, 2])
@pytest.mark.parametrize("what", ["blocks", "layers"])
def test_a_trained_graph_is_plain_again(take: int, what: str) -> None:
    graph = fresh(take, what=what, parts=["blocks.*"])
    before, state = str(graph), [*graph.state_dict()]
    report = graphopt.train(graph, (X, Y), compress=[NoisyTopK()], epochs=2, batch_size=32)
    assert (str(graph), sorted(graph.state_dict())) == (before, sorted(state))
    assert all(math.isfinite(epoch.loss or 0.0) for epoch in report.epochs)
    torch.testing.assert_close(graph(X), torch.cat([graph(one) for one in X.split(1)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("take", [1, 2])
def test_while_it_trains_it_answers_as_before_without_noise_and_with_other_experts_with_it(take: int) -> None:
    graph = fresh(take)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if ".expert_" in name or "scores" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    expected, compression = graph(X).detach(), NoisyTopK()
    assert len(compression.attach(graph)) == 3
    torch.testing.assert_close(graph(X).detach(), expected, rtol=1e-4, atol=1e-5)
    compression.step(0.0)
    drawn = [experts_taken(graph, [[X]])["blocks.0"] for _ in range(2)] if take > 1 else []
    assert not torch.allclose(graph(X), expected, rtol=1e-3)
    assert take == 1 or drawn[0] != drawn[1]
    compression.settle(graph)
    torch.testing.assert_close(graph(X).detach(), expected, rtol=1e-4, atol=1e-5)
    compression.step(0.5)
    compression.finish(graph)
    assert torch.equal(graph(X).detach(), expected)


def test_noise_at_the_beginning_is_the_softplus_of_zero_and_gives_all_experts_samples() -> None:
    graph, compression = fresh(2), NoisyTopK()
    compression.attach(graph)
    compression.step(0.0)
    nodes = compression.watched(graph)[:3]
    clean, deviation, noisy = Executor(graph).run(nodes, [X.repeat(20, 1, 1, 1)]).values()
    assert float(clean.abs().max()) == 0.0
    torch.testing.assert_close(deviation, torch.full_like(deviation, math.log(2)))
    assert float(noisy.std()) == pytest.approx(math.log(2), rel=0.05)
    assert gates_of(noisy, 2).gt(0).float().mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.05)


@pytest.mark.parametrize("take", [1, 2])
def test_the_loss_is_the_weighted_sum_of_both_and_reaches_router_and_noise(take: int) -> None:
    graph, compression = fresh(take), NoisyTopK(importance=0.3, load=0.7)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "scores" in name:
                parameter.copy_(torch.randn(parameter.shape))
    compression.attach(graph)
    compression.step(0.0)
    run = Forward(graph, [*graph.parameters()], compression.watched(graph), "float32")(Batch([X], Y, None))
    loss = compression.loss(run)
    assert loss is not None
    expected = 0.0
    rows = [run.values[node].detach().double() for node in compression.watched(graph)]
    for clean, deviation, noisy in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        gates = torch.tensor([papers_gates(row, take) for row in noisy.tolist()]).sum(0)
        lists = zip(clean.tolist(), deviation.tolist(), noisy.tolist(), strict=True)
        load = torch.tensor([papers_load(*row, take) for row in lists]).sum(0)
        expected += 0.3 * papers_variation(gates.tolist()) + 0.7 * papers_variation(load.tolist())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    learned = {name: p for name, p in graph.named_parameters() if "scores" in name or name.endswith("noise")}
    assert len(learned) == 6
    assert all(p.grad is not None and bool(p.grad.any()) for p in learned.values())


@pytest.mark.parametrize("take", [1, 2])
def test_copies_become_different(take: int) -> None:
    graph = fresh(take, parts=["blocks.0"])
    graphopt.train(graph, (X, Y), compress=[NoisyTopK()], epochs=2, rate=0.01, batch_size=16)
    weights = dict(graph.named_parameters())
    kernels = [weights[f"blocks.0.two{f'.expert_{e}' if e else ''}.weight"].detach() for e in range(4)]
    apart = [float((a - b).abs().max()) for n, a in enumerate(kernels) for b in kernels[:n]]
    assert min(apart) > 1e-4


def split_task(count: int = 96) -> tuple[Tensor, Tensor]:
    """Bright images want one answer of a pattern, dark ones the other: easy for an expert of each, by the mean of the image."""
    generator = torch.Generator().manual_seed(0)
    bright, pattern = (torch.randint(0, 2, (count,), generator=generator) for _ in range(2))
    x = 0.1 * torch.randn(count, 3, 12, 12, generator=generator)
    x[:, :, :6] += (2.0 * pattern - 1.0)[:, None, None, None]
    x[:, :, 6:] -= (2.0 * pattern - 1.0)[:, None, None, None]
    return x + 3.0 * (2.0 * bright - 1.0)[:, None, None, None], (bright ^ pattern)


def test_losses_keep_all_experts_in_use() -> None:
    x, y = split_task()
    uneven = []
    for weight in (0.0, 0.1):
        graph = fresh(2, parts=["blocks.0"])
        graphopt.train(graph, (x, y), compress=[NoisyTopK(weight, weight)], epochs=25, rate=0.02, batch_size=32, seed=0)
        uneven.append(papers_variation(experts_taken(graph, [[x]])["blocks.0"]))
    assert uneven[1] < 0.2 * uneven[0]


def test_routers_of_tokens_train() -> None:
    x = torch.randn(16, 5, 8)
    graph = Graph.capture(Tokens().eval(), x[:2])
    AddExperts(what="mlps", each="token", take=2)(graph)
    before = str(graph)
    graphopt.train(graph, (x, x.flip(1)), loss="mse", compress=[NoisyTopK()], epochs=2, batch_size=8)
    assert str(graph) == before
    assert sum(next(iter(experts_taken(graph, [[x]]).values()))) == pytest.approx(2.0)


@pytest.mark.parametrize("take", [1, 2])
def test_a_quantized_mixture_trains_and_lowers(take: int) -> None:
    graph = fresh(take)
    graphopt.train(graph, (X, Y), compress=[NoisyTopK()], epochs=1, batch_size=32)
    FoldBatchNorm()(graph)
    graph.refresh()
    Quantize(find("x86"), [[X]])(graph)
    graph.refresh()
    before = str(graph)
    graphopt.train(graph, (X, Y), compress=[QuantizationAware(), NoisyTopK()], epochs=1, batch_size=32)
    assert len(mixtures(graph)) == 3
    assert "randn" not in str(graph)
    assert [line.split("(")[0] for line in str(graph).splitlines()] == [
        line.split("(")[0] for line in before.splitlines()
    ]
    from graphopt.backends.onnxruntime import lower

    artifact = lower(graph, find("x86"))
    assert not [line for line in graphopt.simulate(graph, target="x86").mismatches(artifact, X[:8]) if line.differing]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="AddExperts first"):
        graphopt.train(gated.residual(), (X, Y), compress=[NoisyTopK()], epochs=1)
    for weights in ((-1.0, 0.0), (0.0, math.nan)):
        with pytest.raises(InputError, match="at least 0"):
            NoisyTopK(*weights)
    graph = fresh()
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "scores" in name:
                parameter[:2] = torch.randn(parameter[:2].shape)
                parameter[2:] = 0.5 * parameter[:2]
    RemoveGates(data=[[X]])(graph)
    with pytest.raises(InputError, match=r"experts of 'blocks\.\d' were removed"):
        graphopt.train(graph, (X, Y), compress=[NoisyTopK()], epochs=1)
