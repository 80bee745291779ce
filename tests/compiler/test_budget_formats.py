"""Number formats as choices of a budget, and energy by a table."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from rewriting import randomised
from torch import nn

import graphopt
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget import formats as number_formats
from graphopt.compiler.budget.energy import FLOAT, Precision, energy, energy_terms, precisions
from graphopt.compiler.budget.formats import LayerFormats
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.spending import Spending
from graphopt.compiler.budget.widths import Widths
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.searching import Choice, Option, Problem, Term, solve
from graphopt.targets import Energy, Target, find
from graphopt.utils.errors import InputError

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [[batch] for batch in X.split(16)]
TARGET = find("x86")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))).eval()


def spending(amounts: set[str]) -> Spending:
    graph = Graph.capture(network(), X[:1])
    trace = Trace(graph)
    prune = Prune(keep_ratio=0.5, data=DATA, round_to=8)
    formats = LayerFormats.of(graph, TARGET, DATA, amounts, "mse")
    widths = Widths.of(prune, graph, trace)
    return Spending.made(graph, trace, widths, Ranks([], []), DATA, prune, formats)


@pytest.fixture(autouse=True)
def _own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def labels(formats: LayerFormats) -> dict[str, list[str]]:
    return {choice.name: [option.label for option in choice.options] for choice in formats.choices}


def test_formats_are_choices_where_an_amount_has_a_price_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.capture(network(), X[:1])
    monkeypatch.setattr(number_formats, "HURTS", 0.0)

    def found(*amounts: str, target: Target = TARGET, data: object = DATA) -> dict[str, list[str]]:
        return labels(LayerFormats.of(graph, target, data, set(amounts), "mse"))  # type: ignore[arg-type]

    layers = ["0", "3", "7"]
    assert found("bytes") == {layer: ["8 bits", "6 bits", "4 bits", "3 bits"] for layer in layers}
    assert found("latency") == {layer: ["8 bits", "float"] for layer in layers}
    assert found("energy") == {layer: ["8 bits", "float", "6 bits", "4 bits", "3 bits"] for layer in layers}
    assert found("macs") == {}
    assert found("bytes", data=None) == {}
    assert found("bytes", target=TARGET.replace(weight_bits=(4, 8))) == {
        layer: ["8 bits", "4 bits"] for layer in layers
    }


def test_fewer_bits_damage_more_and_float_nothing() -> None:
    for choice in LayerFormats.of(Graph.capture(network(), X[:1]), TARGET, DATA, {"bytes"}, "mse").choices:
        damages = [option.damage for option in choice.options]
        assert damages == sorted(damages)
        assert 0 < damages[0] < 1e-2
        assert damages[-1] > 10 * damages[0]


@pytest.mark.thorough
def test_only_layers_that_integers_hurt_may_be_float(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.capture(network(), X[:1])
    damages = sorted(c.options[0].damage for c in LayerFormats.of(graph, TARGET, DATA, {"bytes"}, "mse").choices)
    assert len(damages) == 3
    monkeypatch.setattr(number_formats, "HURTS", (damages[1] + damages[2]) / 2)
    (choice,) = LayerFormats.of(graph, TARGET, DATA, {"ms"}, "mse").choices
    assert choice.options[0].damage == damages[2]
    assert choice.options[1] == Option("float", 0.0, None)


@pytest.mark.thorough
def test_counted_costs_are_those_of_the_network_in_these_formats() -> None:
    chosen = spending({"bytes", "energy"})
    assert [choice.kind for choice in chosen.choices] == ["channels"] * 2 + ["format"] * 3
    terms = {"bytes": chosen.costs.weights(1.0), "energy": energy_terms(chosen.costs, TARGET.energy, TARGET)}
    problem = Problem(chosen.choices, terms, {})
    drawn = random.Random(0)
    for _ in range(8):
        assignment = tuple(drawn.randrange(len(choice.options)) for choice in chosen.choices)
        counted = chosen.counts(assignment, chosen.mock(assignment), TARGET)
        assert problem.cost("bytes", assignment) == pytest.approx(counted["bytes"])
        assert problem.cost("energy", assignment) == pytest.approx(counted["energy"])


def test_a_budget_of_bytes_is_spent_over_channels_and_bits_together() -> None:
    result = graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget={"bytes": 0.16}, measure=False)
    (note,) = [note for note in result.report.notes if "chosen for a budget" in note]
    seen, wanted = (float(word) for word in note.split(": ")[1].split(" bytes")[0].split(" of "))
    assert seen <= wanted == pytest.approx(0.16 * 4 * sum(p.numel() for p in network().parameters()), rel=1e-3)
    assert any(call.weight_bits in (3, 4, 6) for call in result.report.network)


def test_a_network_whose_channels_are_all_fixed_may_have_fewer_bits_or_nothing_to_choose() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(32, 8)
    how = {"target": "x86", "calibration": [[part] for part in x.split(8)], "measure": False}
    result = graphopt.optimize(model, x[:1], budget={"bytes": 0.2}, **how)
    assert [call.weight_bits for call in result.report.network if call.weight_bits] == [3]
    with pytest.raises(InputError, match="Sequential has nothing to choose for a budget of macs"):
        graphopt.optimize(model, x[:1], budget={"macs": 0.5}, target="x86", measure=False)  # without data


def test_slack_in_a_budget_goes_to_float_layers_that_damage_less() -> None:
    choices = [
        Choice(f"layer{n}", "format", (Option("8 bits", 0.01 * n, 8), Option("float", 0.0, None))) for n in range(3)
    ]
    ms = [Term((n,), lambda options: 1.0 + options[0]) for n in range(3)]
    assert solve(Problem(choices, {"ms": ms}, {"ms": 4.5})) == (0, 0, 1)
    assert solve(Problem(choices, {"ms": ms}, {"ms": 3.5})) == (0, 0, 0)
    assert solve(Problem(choices, {"ms": ms}, {"ms": 9.0})) in [(0, 1, 1), (1, 1, 1)]


# ---- Energy ---------------------------------------------------------------------------------------------------------


def test_energy_is_the_sum_over_layers_that_the_table_gives() -> None:
    graph = Graph.capture(nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(1, 8))
    table = Energy()
    assert "Horowitz" in table.source
    in_float = 32 * (3.7 + 0.9) + 12 * 20.0 / 2 + 32 * 1300.0 / 2
    assert energy(graph, table, lambda _: FLOAT) == pytest.approx(in_float)
    in_integer = 32 * (0.2 + 0.1) + 12 * 20.0 / 8 + 32 * 1300.0 / 8
    assert energy(graph, table, lambda _: Precision.of(TARGET)) == pytest.approx(in_integer)
    assert energy(graph, table, precisions(TARGET, {"0": 4})) == pytest.approx(in_integer - 32 * 1300.0 / 16)
    assert energy(graph, table, precisions(TARGET, {"0": 32})) == pytest.approx(in_float)
    assert table.multiply_add(16, floating=True) == pytest.approx(1.5)
    assert table.multiply_add(16) == pytest.approx(3.1 / 4 + 0.1)


@pytest.mark.thorough
def test_a_budget_of_energy_is_kept_and_told_as_a_model() -> None:
    result = graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget={"energy": 0.15}, measure=False)
    (note,) = [note for note in result.report.notes if "chosen for a budget" in note]
    seen, wanted = (float(word) for word in note.split(": ")[1].split(" pJ")[0].split(" of "))
    assert seen <= wanted
    assert wanted == pytest.approx(
        0.15 * energy(Graph.capture(network(), X[:1]), TARGET.energy, lambda _: FLOAT), rel=1e-3
    )
    assert "a model, not a measurement" in note


def test_a_table_of_energies_is_checked_and_a_target_carries_its_own() -> None:
    with pytest.raises(InputError, match="the energy sram must be a number of picojoules over 0"):
        Energy(sram=0)
    own = TARGET.replace(energy=Energy(dram=10.0, source="measured on my board"))
    assert own.to_dict()["energy"]["dram"] == 10.0
    with pytest.raises(InputError, match="energy must be a Energy"):
        TARGET.replace(energy=3)
