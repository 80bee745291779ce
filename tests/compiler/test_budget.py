"""A budget spent over widths and blocks, from the choices to the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

import graphopt
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget import planner
from graphopt.compiler.budget.costs import Costs
from graphopt.compiler.budget.depths import Depths
from graphopt.compiler.budget.formats import LayerFormats
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.spending import Spending
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.part_times import PartTimes
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.pruning import Prune, RemoveBlocks
from graphopt.searching.problem import replaced
from graphopt.utils.errors import InputError

X = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = [[batch] for batch in X.split(16)]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.2 * self.norm(self.second(self.first(x).relu()))).relu()


def network(width: int = 32, blocks: int = 3) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *(Block(width) for _ in range(blocks))]
    return randomised(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))).eval()


@pytest.fixture(autouse=True)
def _own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(planner, "NETWORKS", 6)


def choices(round_to: int = 8) -> tuple[Graph, Widths, Depths, Costs]:
    graph = Graph.capture(network(), X[:2])
    trace = Trace(graph)
    widths = Widths.of(Prune(keep_ratio=0.5, data=DATA, round_to=round_to), graph, trace)
    depths = Depths.of(graph, DATA)
    return graph, widths, depths, Costs(graph, trace, widths, Ranks([], []), depths, LayerFormats([], None))


def spending() -> Spending:
    graph = Graph.capture(network(), X[:2])
    trace = Trace(graph)
    prune = Prune(keep_ratio=0.5, data=DATA, round_to=8)
    ranks = Ranks.of(graph, DATA, 4)
    return Spending.made(graph, trace, Widths.of(prune, graph, trace), ranks, DATA, prune)


def total(terms: Any, assignment: tuple[int, ...]) -> float:
    return sum(term.of(tuple(assignment[c] for c in term.scope)) for term in terms)


def test_counted_costs_are_those_of_the_network_that_is_made() -> None:
    graph, widths, depths, costs = choices()
    assert [c.kind for c in widths.choices] == ["channels"] * 4
    assert len(depths.choices) == 3
    macs, size = costs.macs(), costs.weights(1.0)
    for assignment in ((0,) * 7, (1, 2, 1, 0, 0, 0, 0), (1, 2, 1, 3, 0, 1, 0), (0, 1, 0, 0, 1, 1, 0)):
        made = graph.clone()
        blocks = [c.options[1].value for c, o in zip(depths.choices, assignment[4:], strict=True) if o]
        if blocks:
            RemoveBlocks(blocks=blocks, fit=False)(made)
        layers = {
            name: units
            for name, units in widths.removal(assignment[:4]).layers().items()
            if not any(name.startswith(block + ".") for block in blocks)
        }
        if layers:
            Prune(layers=layers, kinds=["channels"], compensate="none")(made)
        assert total(macs, assignment) == cost.macs(made)
        weights = [p for _, p in made.named_parameters()]
        wanted = sum(p.numel() * (1 if p.dim() > 1 else 4) for p in weights)
        assert total(size, assignment) == wanted


def test_ranks_cost_what_the_chains_cost_and_what_does_not_fit_is_too_dear() -> None:
    chosen = spending()
    kinds = [choice.kind for choice in chosen.choices]
    first = kinds.index("rank")
    macs, size = chosen.costs.macs(), chosen.costs.weights(1.0)
    whole = (0,) * len(kinds)
    for number in range(kinds.count("rank")):
        for option in range(1, len(chosen.choices[first + number].options)):
            assignment = replaced(whole, first + number, option)
            made = chosen.mock(assignment)
            assert total(macs, assignment) == pytest.approx(cost.macs(made))
            wanted = sum(p.numel() * (1 if p.dim() > 1 else 4) for _, p in made.named_parameters())
            assert total(size, assignment) == pytest.approx(wanted)
            narrowest = tuple(
                len(c.options) - 1 if c.kind == "channels" else o
                for c, o in zip(chosen.choices, assignment, strict=True)
            )
            if not chosen.ranks.fits(number, option, [0.25, 0.25]):
                assert total(macs, narrowest) > total(macs, whole)


def test_ranks_in_removed_blocks_cost_nothing_and_are_not_made() -> None:
    chosen = spending()
    names = [choice.name for choice in chosen.choices]
    rank, block = names.index("2.first"), len(names) - 3
    if chosen.choices[rank].kind != "rank":
        rank = names.index("2.first", rank + 1)
    both = replaced(replaced((0,) * len(names), rank, 1), block, 1)
    made = chosen.mock(both)
    assert cost.macs(made) == total(chosen.costs.macs(), both)
    assert not any("2.first" in name for name, _ in made.named_parameters())


def test_time_of_parts_is_interpolated_between_measured_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    _, widths, _, costs = choices(round_to=1)
    assert all(len(choice.options) == 8 for choice in widths.choices)

    # made-up times: bilinear in the channels of a convolution
    def fresh(_: PartTimes, some: Any) -> list[float]:
        return [1.0 + 0.01 * part.constants[0][0] * part.constants[0][1] for part in some]

    monkeypatch.setattr(PartTimes, "fresh", fresh)
    terms = costs.milliseconds(PartTimes("host"))
    pair = next(term for term in terms if len(term.scope) >= 2)
    groups = widths.plan.groups
    for options in ((0, 0), (7, 7), (3, 5), (1, 6)):
        kept = [
            len(groups[g]) - widths.choices[g].options[o].value for g, o in zip(pair.scope[:2], options, strict=True)
        ]
        assert pair.of((*options, *[0] * (len(pair.scope) - 2))) == pytest.approx(1 + 0.01 * kept[0] * kept[1])


def test_a_removed_block_costs_nothing() -> None:
    _, _, _, costs = choices()
    macs = costs.macs()
    everything, none = (0,) * 7, (0,) * 4 + (1,) * 3
    assert total(macs, none) == 32 * 27 * 256 + 320
    assert total(macs, everything) > total(macs, none)


def stored_bytes(result: graphopt.Optimized) -> float:
    """Of weights in the bits of their layers, and of biases in float."""
    bits = {call.name: call.weight_bits for call in result.report.network}
    graph, found = result.graph, 0.0
    names = {name for name, _ in graph.named_parameters()}
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            reader = next(iter(node.users))
            while Layer.of(reader) is None:  # quantizers
                reader = next(iter(reader.users))
            weights = graph.parameter(node)
            found += weights.numel() * ((bits[graph.site(reader)] or 32) / 8 if weights.dim() > 1 else 4)
    return found


@pytest.mark.parametrize(
    "budget", [{"macs": 0.5}, {"bytes": 0.15}, {"macs": 0.6, "bytes": 12_000}], ids=lambda b: "+".join(b)
)
def test_counted_budgets_hold(budget: dict[str, float]) -> None:
    result = graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget=budget, measure=False)
    original = Graph.capture(network(), X[:1])
    if "macs" in budget:
        assert cost.macs(result.graph) <= budget["macs"] * cost.macs(original)
    if "bytes" in budget:
        limit = budget["bytes"] if budget["bytes"] > 1 else budget["bytes"] * 4 * cost.parameters(original)
        assert stored_bytes(result) <= limit


@pytest.mark.thorough
def test_a_budget_of_time_is_kept_by_measurement() -> None:
    result = graphopt.optimize(
        network(64), X[:1], target=graphopt.targets.host("onnxruntime"), calibration=DATA, budget={"latency": 0.5}
    )
    assert result.report.latency is not None
    assert any("chosen for a budget" in note for note in result.report.notes)
    assert any("agree: R^2" in note for note in result.report.notes)
    made = cost.macs(result.graph) / cost.macs(Graph.capture(network(64), X[:1]))
    assert made < 1 or result.report.latency.speedup >= 2  # narrower, but where integers alone keep it


def test_without_real_data_weights_decide_and_no_block_goes() -> None:
    result = graphopt.optimize(network(), X[:1], target="x86", budget={"macs": 0.6}, measure=False)
    assert cost.macs(result.graph) <= 0.6 * cost.macs(Graph.capture(network(), X[:1]))
    assert "RemoveBlocks" not in {step.name for step in result.report.steps}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "budget says what may be spent"),
        ({"latncy": 0.5}, "did you mean 'latency'"),
        ({"latency": 3}, "for milliseconds give 'ms'"),
        ({"latency": 0.5, "ms": 1.0}, "not both"),
        ({"energy": 2}, "the share that is left, under 1"),
        ({"macs": -1}, "must be a number over 0"),
        ({"macs": True}, "must be a number over 0"),
        ({"macs": float("nan")}, "must be a number over 0"),
        ({"macs": 0.5, "bytes": "small"}, "the budget of bytes must be a number"),
    ],
)
def test_bad_budgets_are_told_before_any_work(budget: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graphopt.optimize("no such file", budget=budget)


def test_a_budget_says_all_that_may_be_spent() -> None:
    with pytest.raises(InputError, match="leave out keep_macs and max_latency"):
        graphopt.optimize(network(), X[:1], budget={"macs": 0.5}, keep_macs=0.5)
    with pytest.raises(InputError, match="belong to the target's recipe"):
        graphopt.optimize(network(), X[:1], budget={"macs": 0.5}, passes="simplify")


def test_out_of_reach_says_the_least() -> None:
    with pytest.raises(InputError, match=r"macs can be brought from .* at the least"):
        graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget={"macs": 0.001}, measure=False)


@pytest.mark.thorough
def test_what_was_found_stands_where_moved_limits_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def solve(problem: Any) -> Any:
        asked.append(problem.limits["macs"])
        if len(asked) > 1:
            raise InputError("out of reach")
        return problem.first

    monkeypatch.setattr(planner, "solve", solve)
    result = graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget={"macs": 0.5}, measure=False)
    assert asked[1] < asked[0]
    assert any("the budget is missed" in warning for warning in result.report.warnings)


@pytest.mark.thorough
def test_a_network_that_is_chosen_again_and_misses_is_asked_to_do_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(planner, "solve", lambda problem: asked.append(problem.limits["macs"]) or problem.first)
    graphopt.optimize(network(), X[:1], target="x86", calibration=DATA, budget={"macs": 0.5}, measure=False)
    assert len(asked) == planner.ROUNDS
    assert asked == sorted(asked, reverse=True)


def test_another_architecture_has_no_time_here() -> None:
    with pytest.raises(InputError, match="nothing can be timed for it here"):
        graphopt.optimize(network(), X[:1], target="arm", calibration=DATA, budget={"latency": 0.5})


def test_blocks_are_removed_by_name() -> None:
    graph = Graph.capture(network(), X[:2])
    shorter = graph.clone()
    changes = RemoveBlocks(blocks=["3"], fit=False)(shorter)
    assert [change.site for change in changes] == ["3"]
    assert cost.macs(shorter) == cost.macs(graph) - 2 * 32 * 32 * 9 * 256
    RemoveBlocks(blocks=["*"], data=DATA)(shorter)
    assert cost.macs(shorter) == 32 * 27 * 256 + 320
    with pytest.raises(InputError, match=r"no residual branch is added at 'layer9'; there are 2, 3, 4"):
        RemoveBlocks(blocks=["layer9"], fit=False)(graph)
    with pytest.raises(InputError, match="keep_ratio, or blocks"):
        RemoveBlocks()
    with pytest.raises(InputError, match="pass data"):
        RemoveBlocks(blocks=["3"])
