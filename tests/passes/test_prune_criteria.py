"""Structured pruning: how units are scored, and what the layers behind make of what is gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import images
from prune_cases import DATA, group_of, plain, residual
from rewriting import apply, assert_close, capture, randomised
from torch import Tensor, nn

from graphopt.analysis.channels.groups import Group, groups
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import (
    Activation,
    Fisher,
    GroupLasso,
    Lasso,
    Prune,
    Reconstruction,
    RemoveBlocks,
    Taylor,
    ThiNet,
    batch_norm_scale,
    elimination,
    geometric_median,
    l1_norm,
    l2_norm,
    per_unit,
    similarity,
    slimming,
)

# ---- Criteria -------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_everything_that_writes_a_unit() -> None:
    graph = capture(residual(8), images(2))
    group, state = group_of(graph, "stem"), graph.state_dict()
    writers = [state[f"{n}.weight"] for n in ("stem", "second0", "second1", "second2")]
    torch.testing.assert_close(l1_norm(graph, group), sum(w.abs().sum((1, 2, 3)) for w in writers))
    torch.testing.assert_close(l2_norm(graph, group), sum((w**2).sum((1, 2, 3)) for w in writers) ** 0.5)


@pytest.mark.thorough
def test_batch_norm_scale_is_the_size_of_gamma_and_infinite_without_a_batch_norm() -> None:
    graph = capture(plain(8), images(2))
    torch.testing.assert_close(batch_norm_scale(graph, group_of(graph, "0")), graph.state_dict()["1.weight"].abs())
    graph = capture(residual(8), images(2))
    assert torch.isinf(batch_norm_scale(graph, group_of(graph, "first0"))).all()


def test_the_geometric_median_is_the_filter_nearest_to_all_others() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.Conv2d(5, 2, 1))
    model[0].weight.data[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    graph = capture(model, torch.randn(2, 1, 4, 4))
    torch.testing.assert_close(
        geometric_median(graph, group_of(graph, "0")), torch.tensor([16.0, 13.0, 12.0, 13.0, 34.0])
    )


@pytest.mark.thorough
def test_a_twin_is_merged_without_a_trace() -> None:
    model = plain(8)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[1].running_mean):
            tensor[5] = tensor[2]
        model[1].running_var[5] = model[1].running_var[2]
    graph = capture(model, images(2))
    scores = similarity(graph, group_of(graph, "0"))
    assert sorted(scores.argsort()[:2].tolist()) == [2, 5]
    assert scores[[2, 5]].max() < 1e-6
    wanted = model(images(4))
    apply(Prune(0.95, layers={"3": None, "0": 7 / 8}, criterion=similarity, compensate="merge"), graph)
    assert graph.state_dict()["0.weight"].shape[0] == 7
    assert_close(graph(images(4)), wanted)


def test_taylor_and_fisher_are_sums_over_samples_of_value_times_gradient() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)).eval()
    graph = capture(model, images(2))
    x = images(16, seed=0)
    z = model[0](x)
    z.retain_grad()
    logits = model[3](torch.flatten(torch.relu(z), 1))
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    product = (z * z.grad).sum((2, 3))
    found = [g for g in groups(graph) if g.name == "0"]
    taylor = Taylor([[x]]).prepare(graph, found)(graph, found[0])
    fisher = Fisher([[x[:8]], [x[8:]]]).prepare(graph, found)(graph, found[0])
    torch.testing.assert_close(taylor.float(), product.abs().sum(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fisher.float(), (product**2).sum(0) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "std", "nonzero"])
def test_activation_strength_is_measured_behind_the_activation(kind: str) -> None:
    model = plain(8).eval()
    graph = capture(model, images(2))
    answers = model[:3](torch.cat([b[0] for b in DATA])).transpose(0, 1).flatten(1).double()
    wanted = {
        "mean": answers.abs().mean(1),
        "std": answers.std(1, correction=0),
        "nonzero": (answers != 0).double().mean(1),
    }
    found = groups(graph)
    score = Activation(DATA, kind).prepare(graph, found)(graph, found[0])
    torch.testing.assert_close(score, wanted[kind], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", [ThiNet, Lasso, Reconstruction])
def test_criteria_that_look_at_readers_give_up_first_what_no_one_reads(criterion: Any) -> None:
    model = plain(8)
    with torch.no_grad():
        model[3].weight[:, [1, 6]] = 0
    graph = capture(model, images(2))
    found = groups(graph)
    scores = criterion(DATA).prepare(graph, found)(graph, found[0])
    assert sorted(scores.argsort()[:2].tolist()) == [1, 6]


def test_the_reconstruction_error_is_that_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "RIDGE", 1e-9)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = capture(model, images(2))
    found = [g for g in groups(graph) if g.name == "0"]
    scores = Reconstruction(DATA).prepare(graph, found)(graph, found[0])
    x = model[:2](torch.cat([b[0] for b in DATA])).transpose(0, 1).flatten(1).T.double().detach()
    x = x - x.mean(0)
    y = x @ model[2].weight.double().detach().flatten(1).T
    order = scores.argsort().tolist()
    for count in (1, 4):
        left = order[count:]
        fitted = x[:, left] @ torch.linalg.lstsq(x[:, left], y).solution
        assert float(scores[order[count - 1]]) == pytest.approx(
            float(((fitted - y) ** 2).sum() / (y**2).sum()), rel=1e-3
        )


@pytest.mark.thorough
def test_a_criterion_of_ones_own_takes_a_few_lines() -> None:
    def largest_weight(graph: Graph, group: Group) -> Tensor:
        return torch.stack([per_unit(m, graph.tensor(m.node).abs(), "amax") for m in group.writers]).amax(0)

    model = plain(8)
    with torch.no_grad():
        model[0].weight[3] = 1e-4
    graph = capture(model, images(2))
    apply(Prune(0.98, layers={"0": 7 / 8, "3": None}, criterion=largest_weight, compensate="none"), graph)
    keep = [i for i in range(8) if i != 3]
    assert torch.equal(graph.state_dict()["0.weight"], model[0].weight[keep])


# ---- Compensation ---------------------------------------------------------------------------------------------------


def test_channels_that_others_can_stand_in_for_cost_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 3, padding=0)).eval()  # rank 3 through and through
    graph = capture(model, images(2))
    apply(Prune(0.5, data=DATA), graph)
    assert graph.state_dict()["0.weight"].shape[0] <= 6
    assert_close(graph(images(4)), model(images(4)), 2e-2)


def test_the_mean_of_a_constant_channel_moves_into_the_bias_without_data() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    randomised(model)
    with torch.no_grad():
        model[1].weight[[0, 4]] = 0
        model[1].bias[[0, 4]] = torch.tensor([1.5, -0.7])
    graph = capture(model, images(2))
    apply(Prune(0.99, layers={"0": 4 / 6}, criterion=batch_norm_scale), graph)
    assert graph.state_dict()["0.weight"].shape[0] == 4
    assert_close(graph(images(4)), model(images(4)))


@pytest.mark.thorough
def test_reconstruction_beats_leaving_the_readers_alone_and_readers_alone_are_nearly_as_good() -> None:
    model = residual(16).eval()
    wanted, error = model(images(32, seed=9)), {}
    for how in ("none", "readers", "all"):
        graph = capture(model, images(2))
        apply(Prune(0.6, data=DATA, compensate=how), graph)  # type: ignore[arg-type]
        error[how] = ((graph(images(32, seed=9)) - wanted).norm() / wanted.norm()).item()
    assert error["readers"] < 0.7 * error["none"]
    assert error["all"] < 0.7 * error["none"]


# ---- Blocks and penalties -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_residual_branch_that_matters_least_goes_first() -> None:
    model = residual(8, blocks=3)
    with torch.no_grad():
        model.second1.weight.zero_()
        model.second1.bias.zero_()
    graph = capture(model, images(2))
    changes = apply(RemoveBlocks(0.8, data=DATA, fit=False), graph)
    assert [c.what for c in changes] == ["branch removed, output moved by 0.0%"]
    assert "first1.weight" not in graph.state_dict()
    assert_close(graph(images(4)), model(images(4)))


@pytest.mark.thorough
def test_without_residual_branches_there_are_no_blocks_to_remove() -> None:
    with pytest.raises(ValueError, match="without any residual branch the network still has 100%"):
        RemoveBlocks(0.5, data=DATA)(capture(plain(), images(2)))


@pytest.mark.thorough
def test_penalties_pull_on_what_they_should() -> None:
    graph = capture(plain(8), images(2))
    names = dict(graph.named_parameters())
    penalty = slimming(graph)
    assert penalty.item() == pytest.approx(
        float(names["1.weight"].abs().sum() + names["4.weight"].abs().sum()), rel=1e-5
    )
    penalty.backward()
    assert torch.equal(names["1.weight"].grad, names["1.weight"].sign())
    lasso = GroupLasso(graph)()
    widths = [27**0.5, 72**0.5]
    wanted = sum(
        w * names[n].flatten(1).norm(dim=1).sum() for w, n in zip(widths, ("0.weight", "3.weight"), strict=True)
    )
    assert lasso.item() == pytest.approx(float(wanted), rel=1e-4)
    lasso.backward()
    assert names["3.weight"].grad is not None
