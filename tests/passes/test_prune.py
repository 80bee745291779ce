"""Structured pruning: what goes, what it costs, and what the layers behind make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images
from rewriting import Model, apply, assert_close, capture, randomised
from small_models import MODELS
from torch import Tensor, nn

import graphopt
from graphopt.analysis.channels import cost
from graphopt.analysis.channels.groups import Group, groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.trace import Trace
from graphopt.backends.onnxruntime import lower
from graphopt.compiler.recipes import recipe
from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.storage import load
from graphopt.passes.pruning import (
    Activation,
    Fisher,
    GroupLasso,
    Lasso,
    Prune,
    Random,
    Reconstruction,
    RemoveBlocks,
    Taylor,
    ThiNet,
    batch_norm_scale,
    geometric_median,
    l1_norm,
    l2_norm,
    per_unit,
    similarity,
    slimming,
    surgeon,
)
from graphopt.passes.sparsity import Sparsify
from graphopt.passmanager.runner import run
from graphopt.targets import find

DATA = [[images(16, seed=s)] for s in range(2)]


def plain(width: int = 16) -> nn.Module:
    """conv-BN-relu twice, and a head."""
    return randomised(
        nn.Sequential(
            conv(3, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
        )
    )  # fmt: skip


def residual(width: int = 8, blocks: int = 3) -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.stem(x)))
        for b in range(blocks):
            y = F.relu(y + getattr(m, f"second{b}")(F.relu(getattr(m, f"first{b}")(y))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    inner = {f"{n}{b}": conv(width, width) for b in range(blocks) for n in ("first", "second")}
    return Model(body, stem=conv(3, width), norm=nn.BatchNorm2d(width), head=nn.Linear(width, 5), **inner)


def group_of(graph: Graph, name: str) -> Group:
    return next(g for g in groups(graph) if g.name == name)


# ---- The pass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in MODELS if n != "shuffling"])
@pytest.mark.parametrize("options", [{}, {"data": DATA}], ids=["weights alone", "with data"])
def test_every_small_network_is_pruned_and_the_callers_model_left_alone(name: str, options: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = randomised(MODELS[name]()).eval()
    graph = capture(model, images(2))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before, out = measure.parameters(graph), graph(images(2)).shape
    changes = apply(Prune(0.8, of="parameters", **options), graph)
    assert changes
    assert 0.4 * before < measure.parameters(graph) <= 0.8 * before  # one unit of the smallest is a third of it
    assert graph(images(4)).shape == (4, *out[1:])
    assert torch.isfinite(graph(images(4))).all()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("of", ["macs", "parameters", "channels"])
@pytest.mark.parametrize("ratio", [0.7, 0.4])
@pytest.mark.parametrize("make", [lambda: plain(64), lambda: residual(64)])
def test_the_target_is_hit_within_one_percent(of: str, ratio: float, make: Any) -> None:
    graph = capture(make(), images(2))
    units = {"macs": measure.macs, "parameters": measure.parameters, "channels": _free_units}[of]
    before = units(graph)
    apply(Prune(ratio, of=of), graph)  # type: ignore[arg-type]
    assert ratio - 0.01 <= units(graph) / before <= ratio


def _free_units(graph: Graph) -> int:
    return sum(len(g) for g in groups(graph) if len(g.free))


def test_uniform_takes_the_same_share_of_every_group_and_says_which_layers_changed() -> None:
    graph = capture(plain(32), images(2))
    changes = apply(Prune(0.5, of="channels", criterion=l2_norm), graph)
    assert [c.what for c in changes] == [
        "[32, 3, 3, 3] -> [16, 3, 3, 3]", "[32, 32, 3, 3] -> [16, 16, 3, 3]", "[5, 32] -> [5, 16]",
    ]  # fmt: skip


def test_global_ranking_takes_what_scores_least_wherever_it_is() -> None:
    model = plain(16)
    with torch.no_grad():
        model[0].weight[:12] *= 1e-3
    graph = capture(model, images(2))
    apply(Prune(28 / 32, of="channels", scope="global", criterion=l1_norm, normalize="none"), graph)
    assert [len(g) for g in groups(graph)][:2] == [12, 16]


def test_kept_channels_are_multiples_where_asked() -> None:
    graph = capture(residual(48), images(2))
    apply(Prune(0.5, round_to=16), graph)
    assert all(len(g) % 16 == 0 for g in groups(graph) if len(g.free))


def test_narrow_groups_are_rounded_to_half_of_their_width() -> None:
    graph = capture(plain(16), images(2))
    apply(Prune(0.6, round_to=16), graph)
    assert {len(g) for g in groups(graph) if len(g.free)} == {8, 16}


def test_layers_can_be_left_alone_or_given_a_share_of_their_own() -> None:
    graph = capture(residual(16), images(2))
    apply(Prune(0.7, layers={"first1": None, "first0": 0.25, "stem": None}), graph)
    widths = {g.name: len(g) for g in groups(graph)}
    assert widths["first0"] == 4
    assert widths["first1"] == widths["stem"] == 16
    assert widths["first2"] < 16


def test_residual_streams_can_be_left_as_they_are() -> None:
    graph = capture(residual(16), images(2))
    apply(Prune(0.6, streams=False), graph)
    assert group_of(graph, "stem").stream
    assert len(group_of(graph, "stem")) == 16


def test_steps_with_fine_tuning_between_them_end_at_the_target() -> None:
    graph, seen = capture(plain(32), images(2)), []
    before = measure.macs(graph)
    apply(Prune(0.4, steps=3, fine_tune=lambda g: seen.append(measure.macs(g) / before)), graph)
    np.testing.assert_allclose(seen, [0.4 ** (1 / 3), 0.4 ** (2 / 3), 0.4], atol=0.02)


def test_heads_and_positions_within_heads_can_be_told_apart() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv = nn.Linear(6, 32), nn.Linear(32, 96)
            self.proj, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.embed(x)
            q, k, v = self.qkv(y).reshape(-1, 7, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 7, 32)
            return self.head((y + self.proj(z)).mean(1))  # type: ignore[no-any-return]

    graph = capture(Attention(), torch.randn(2, 7, 6))
    kinds = {g.kind: len(g) for g in groups(graph) if g.name == "qkv"}
    assert kinds == {"rows": 4, "columns": 8} or kinds == {"rows": 4, "columns": 8, "channels": 3}
    apply(Prune(0.8, data=[[torch.randn(8, 7, 6)]], kinds={"rows"}), graph)
    assert graph.state_dict()["qkv.weight"].shape[0] in (72, 48)
    assert graph.state_dict()["embed.weight"].shape == (32, 6)
    assert graph(torch.randn(3, 7, 6)).shape == (3, 5)


@pytest.mark.parametrize(
    "options", [{}, {"scope": "global"}, {"criterion": "Activation"}, {"criterion": "Fisher"}], ids=str
)
def test_groups_made_by_one_layer_are_judged_each_by_its_own_units(options: dict[str, Any]) -> None:
    """The rows and columns of a grouped convolution have one name and different numbers of units."""
    model = randomised(
        nn.Sequential(conv(3, 24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.ReLU(), conv(24, 4, 1))
    )
    graph = capture(model, images(2))
    twins = [g for g in groups(graph) if g.name == "0"]
    assert len({len(g) for g in twins}) == 2
    if "criterion" in options:
        options = {
            "criterion": {"Activation": Activation, "Fisher": Fisher}[options["criterion"]](DATA),
            "scope": "global",
        }
        found = groups(graph)
        score = options["criterion"].prepare(graph, found)
        assert all(len(score(graph, g)) == len(g) and bool((score(graph, g) > 0).any()) for g in twins)
    before = measure.macs(graph)
    apply(Prune(0.6, data=DATA, **options), graph)
    assert measure.macs(graph) <= 0.6 * before
    assert torch.isfinite(graph(images(4))).all()


@pytest.mark.thorough
def test_a_pruned_network_trains_folds_equalizes_quantizes_lowers_and_runs(tmp_path: Any) -> None:
    graph = capture(residual(16), images(2))
    full = measure.macs(graph)
    apply(Prune(0.6, data=DATA), graph)
    graph.train()
    optimizer = torch.optim.SGD(graph.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(graph(DATA[0][0]), torch.arange(16) % 5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    graph.eval()
    assert losses[-1] < losses[0]
    graph.save(tmp_path / "pruned.pt2")
    graph = load(tmp_path / "pruned.pt2")
    assert measure.macs(graph) <= 0.6 * full
    wanted = graph(images(4)).detach()
    run(recipe(find("arm"), DATA), graph)
    artifact = lower(graph, find("arm"))
    assert artifact(images(4)).shape == wanted.shape
    assert ((artifact(images(4)) - wanted).norm() / wanted.norm()).item() < 0.1


def test_masked_weights_are_baked_in_before_channels_go() -> None:
    graph = capture(plain(16), images(2))
    apply(Sparsify(0.5), graph)
    assert apply(Prune(0.6, data=DATA), graph)
    assert all("mask" not in name for name in graph.state_dict())
    assert graph(images(4)).shape == (4, 5)


# ---- Criteria -------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_everything_that_writes_a_unit() -> None:
    graph = capture(residual(8), images(2))
    group, state = group_of(graph, "stem"), graph.state_dict()
    writers = [state[f"{n}.weight"] for n in ("stem", "second0", "second1", "second2")]
    torch.testing.assert_close(l1_norm(graph, group), sum(w.abs().sum((1, 2, 3)) for w in writers))
    torch.testing.assert_close(l2_norm(graph, group), sum((w**2).sum((1, 2, 3)) for w in writers) ** 0.5)


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
    monkeypatch.setattr(surgeon, "RIDGE", 1e-9)
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


# ---- Costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "residual", *(n for n in MODELS if n != "shuffling")])
def test_costs_are_exact_before_and_after_removal(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = {"plain": plain, "residual": residual, **MODELS}[name]()
    graph = capture(model, images(2))
    trace = Trace(graph)
    found = [g for g in groups(graph, trace) if len(g.free)]
    orders = [g.free[: len(g) // 2].tolist() for g in found]
    whole = [0] * len(found)
    expected = []
    for price, unit in ((cost.macs, measure.macs), (cost.parameters, measure.parameters)):
        made = price(graph, trace, found)
        assert cost.Budget(made, orders, whole).now == unit(graph)
        expected.append((unit, cost.Budget(made, orders, [len(o) for o in orders]).now))
    remove(graph, trace, list(zip(found, orders, strict=True)))
    assert all(unit(graph) == pytest.approx(left) for unit, left in expected)


# ---- Blocks and penalties -------------------------------------------------------------------------------------------


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


def test_without_residual_branches_there_are_no_blocks_to_remove() -> None:
    with pytest.raises(ValueError, match="without any residual branch the network still has 100%"):
        RemoveBlocks(0.5, data=DATA)(capture(plain(), images(2)))


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


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 1.0}, "keep_ratio must be over 0 and under 1, got 1.0"),
        ({"keep_ratio": -0.5}, "keep_ratio must be over 0 and under 1"),
        ({"keep_ratio": 0.5, "layers": {"a": 1.5}}, r"layers\['a'\] must be over 0 and under 1"),
        ({"keep_ratio": 0.5, "of": "flops"}, "of must be one of macs, parameters, channels, got 'flops'"),
        ({"keep_ratio": 0.5, "scope": "sensitivity"}, "scope='sensitivity' needs data"),
        ({"keep_ratio": 0.5, "compensate": "all"}, "compensate='all' needs data"),
        ({"keep_ratio": 0.5, "round_to": 0}, "round_to must be a whole number of at least 1"),
        ({"keep_ratio": 0.5, "kinds": {"heads"}}, "kinds must be among channels, rows, columns"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": lambda g, u: torch.zeros(3)}, r"one score per unit of 0, \[16\], got \[3\]"),
        ({"criterion": lambda g, u: torch.full((len(u),), float("nan"))}, "returned NaN for 0"),
        ({"layers": {"nothing*": None}}, "no group of channels is made by a layer that matches 'nothing\\*'"),
        ({"layers": {"*": None}}, "no channels can be pruned: 8 is fixed by the model's output"),
        ({"least": 16}, "only 0% of the cost can be removed, 70% were asked for"),
    ],
)
def test_what_a_graph_cannot_give_is_said_in_one_sentence(options: dict[str, Any], message: str) -> None:
    graph = capture(plain(), images(2))
    before = str(graph)
    with pytest.raises(ValueError, match=message):
        Prune(0.3, **options)(graph)
    assert str(graph) == before


def test_data_that_end_are_refused() -> None:
    class Once:
        one_shot = True

    with pytest.raises(ValueError, match="gone through several times"):
        Prune(0.5, data=Once())  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    graph = capture(plain(), images(2))
    with pytest.raises(ValueError, match="the loss on a batch is nan"):
        Prune(0.5, criterion=Taylor(DATA, loss=lambda out, batch: out.sum() * float("nan")))(graph)


def test_random_scores_repeat_with_the_seed() -> None:
    graph = capture(plain(), images(2))
    group = groups(graph)[0]
    assert torch.equal(Random(3)(graph, group), Random(3)(graph, group))
    assert not torch.equal(Random(3)(graph, group), Random(4)(graph, group))


# ---- Real networks --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_resnet20_keeps_its_accuracy_at_60_percent_without_fine_tuning(zoo: Any) -> None:
    x, y = (t[:1000] for t in zoo.cifar10("test"))
    data = [[part] for part in zoo.cifar10("train10k")[0][:256].split(64)]
    graph = capture(zoo.cifar_resnet(20), x[:2])
    before = measure.macs(graph)
    apply(Prune(0.6, data=data), graph)
    assert 0.59 < measure.macs(graph) / before <= 0.6
    with torch.no_grad():
        assert float((graph(x).argmax(1) == y).float().mean()) >= 0.85


# ---- In the main job ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_optimize_prunes_first_and_reports_it() -> None:
    model = residual(32).eval()
    result = graphopt.optimize(model, images(2), target="x86", calibration=DATA, keep_macs=0.6, measure=False)
    step = result.report.steps[0]
    assert step.name == "Prune"
    assert result.report.original is not None
    assert 0.3 < step.macs / result.report.original.macs <= 0.6
    assert result.artifact(images(4)).shape == (4, 5)


@pytest.mark.thorough
def test_without_real_data_optimize_prunes_by_the_weights() -> None:
    result = graphopt.optimize(residual(32).eval(), images(2), target="x86", keep_macs=0.6, measure=False)
    assert "data" not in result.report.steps[0].options
    assert result.report.original is not None
    assert result.report.steps[0].macs <= 0.6 * result.report.original.macs


def test_keep_macs_goes_with_the_recipe_only() -> None:
    with pytest.raises(ValueError, match="put Prune"):
        graphopt.optimize(plain().eval(), images(2), passes=[], keep_macs=0.5)


@pytest.mark.thorough
def test_what_does_not_fit_into_memory_is_computed_anew_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    start = capture(residual(8), images(2))
    graphs = [start.clone() for _ in range(3)]
    for budget, graph in zip((2**31, 40_000, 0), graphs, strict=True):
        monkeypatch.setattr("graphopt.fitting.fit.MEMORY", budget)
        apply(Prune(0.6, data=DATA), graph)
    assert_close(graphs[1](images(4)), graphs[0](images(4)), 1e-5)
    assert_close(graphs[2](images(4)), graphs[0](images(4)), 1e-5)
