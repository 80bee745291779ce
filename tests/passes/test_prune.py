"""Structured pruning: what goes, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images
from prune_cases import DATA, group_of, plain, residual
from rewriting import apply, capture, randomised
from small_models import MODELS
from torch import Tensor, nn

from graphopt.analysis.channels import cost
from graphopt.analysis.channels.groups import groups
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
    Prune,
    l1_norm,
    l2_norm,
)
from graphopt.passes.sparsity import Sparsify
from graphopt.passmanager.runner import run
from graphopt.targets import find

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


@pytest.mark.thorough
def test_kept_channels_are_multiples_where_asked() -> None:
    graph = capture(residual(48), images(2))
    apply(Prune(0.5, round_to=16), graph)
    assert all(len(g) % 16 == 0 for g in groups(graph) if len(g.free))


@pytest.mark.thorough
def test_narrow_groups_are_rounded_to_half_of_their_width() -> None:
    graph = capture(plain(16), images(2))
    apply(Prune(0.6, round_to=16), graph)
    assert {len(g) for g in groups(graph) if len(g.free)} == {8, 16}


@pytest.mark.thorough
def test_layers_can_be_left_alone_or_given_a_share_of_their_own() -> None:
    graph = capture(residual(16), images(2))
    apply(Prune(0.7, layers={"first1": None, "first0": 0.25, "stem": None}), graph)
    widths = {g.name: len(g) for g in groups(graph)}
    assert widths["first0"] == 4
    assert widths["first1"] == widths["stem"] == 16
    assert widths["first2"] < 16


@pytest.mark.thorough
def test_residual_streams_can_be_left_as_they_are() -> None:
    graph = capture(residual(16), images(2))
    apply(Prune(0.6, streams=False), graph)
    assert group_of(graph, "stem").stream
    assert len(group_of(graph, "stem")) == 16


@pytest.mark.thorough
def test_steps_with_fine_tuning_between_them_end_at_the_target() -> None:
    graph, seen = capture(plain(32), images(2)), []
    before = measure.macs(graph)
    apply(Prune(0.4, steps=3, fine_tune=lambda g: seen.append(measure.macs(g) / before)), graph)
    np.testing.assert_allclose(seen, [0.4 ** (1 / 3), 0.4 ** (2 / 3), 0.4], atol=0.02)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_masked_weights_are_baked_in_before_channels_go() -> None:
    graph = capture(plain(16), images(2))
    apply(Sparsify(0.5), graph)
    assert apply(Prune(0.6, data=DATA), graph)
    assert all("mask" not in name for name in graph.state_dict())
    assert graph(images(4)).shape == (4, 5)


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
