"""Plans of passes: read, edited, and done without choosing anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

from graphopt.compiler.pipeline import pipeline, read
from graphopt.data import Calibration
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.factorization import SVD, Factorize, Separable
from graphopt.passes.pruning import Prune
from graphopt.passes.quantization import MixedPrecision
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError
from graphopt.utils.pass_text import pass_text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))).mean((2, 3)))


@pytest.fixture
def case() -> tuple[Graph, Calibration]:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 10, 10)
    graph = Graph.capture(randomised(Net()).eval(), images[:1])
    return graph, Calibration(images, graph)


def again(text: str, graph: Graph, data: Calibration) -> Graph:
    """The graph after the passes of a text."""
    copy = graph.clone()
    run(pipeline(text)(find("x86"), data), copy)
    return copy


def same_weights(a: Graph, b: Graph) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pruning_does_again_what_its_plan_says(case: tuple[Graph, Calibration]) -> None:
    graph, data = case
    prune = Prune(keep_ratio=0.5, data=data)
    plan, before = prune.plan(graph), str(graph)
    assert str(graph) == before
    pruned = graph.clone()
    run([prune], pruned)
    lost = {group.name: len(group.gone) for group in plan.groups}
    assert pruned.tensor(_weight(pruned, "conv1")).shape[0] == 16 - lost["conv1"]
    assert same_weights(again(plan.text, graph, data), pruned)
    assert "conv1" in str(plan)
    assert plan.text.startswith("prune{kinds=['channels'], layers={'conv1': [")


def _weight(graph: Graph, layer: str) -> Any:
    return next(node for node in graph.nodes if node.op == "get_attr" and str(node.target).startswith(layer))


@pytest.mark.thorough
def test_a_plan_of_pruning_is_edited_by_hand(case: tuple[Graph, Calibration]) -> None:
    graph, data = case
    edited = again("prune{layers={conv1: [0, 3, 15]}}", graph, data)
    kept = [unit for unit in range(16) if unit not in (0, 3, 15)]
    assert torch.equal(edited.tensor(_weight(edited, "conv1")), graph.tensor(_weight(graph, "conv1"))[kept])
    assert edited.tensor(_weight(edited, "conv2")).shape == (16, 13, 3, 3), "conv2 is not named, so it keeps its own"
    shares = again("prune{layers={conv1: 0.5, conv2: [1]}}", graph, data)
    assert shares.tensor(_weight(shares, "conv2")).shape == (15, 8, 3, 3)
    both = again("prune{keep_ratio=0.6, layers={conv1: [0]}}", graph, data)
    assert both.tensor(_weight(both, "conv2")).shape[1] == 15
    assert cost.macs(both) <= 0.61 * cost.macs(graph)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "say what goes"),
        ({"layers": {"conv1": None}}, "say what goes"),
        ({"layers": {"conv1": [1, 1]}}, "numbers of units, each once"),
        ({"layers": {"conv1": [-1]}}, "numbers of units, each once"),
        ({"layers": {"conv1": [1]}, "steps": 2}, "steps must be 1"),
        ({"layers": {"conv1": [3, 16]}}, "conv1 has 16 channels, numbered 0 to 15, and no 16"),
        ({"layers": {"conv1": list(range(16))}}, "cannot go together"),
        ({"layers": {"nothing": [1]}}, "no group of channels is made by a layer that matches 'nothing'"),
    ],
)
def test_units_that_cannot_go_are_refused(case: tuple[Graph, Calibration], options: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Prune(**options)(case[0])


@pytest.mark.thorough
def test_factorization_does_again_what_its_plan_says(case: tuple[Graph, Calibration]) -> None:
    graph, data = case
    factorize = Factorize(target_macs=0.6, methods=[SVD(), Separable()])
    plan = factorize.plan(graph)
    done = graph.clone()
    run([factorize], done)
    text = plan.text
    assert {each.kind.__name__ for each in read(text)} <= {"SVD", "Separable"}
    without = text.replace("'*': None}", "'*': None}, data=None")
    repeated = again(without, graph, data)
    assert cost.macs(repeated) == cost.macs(done) < 0.65 * cost.macs(graph)
    assert same_weights(repeated, done)


@pytest.mark.thorough
def test_mixed_precision_does_again_what_its_plan_says(case: tuple[Graph, Calibration]) -> None:
    graph, data = case
    mixed = MixedPrecision(find("x86"), data, average_bits=5, layers={"head": None})
    plan = mixed.plan(graph)
    chosen, repeated = graph.clone(), again(plan.text, graph, data)
    run([mixed], chosen)
    assert str(repeated) == str(chosen)
    edited = again(
        plan.text.replace("'conv1': {'weights': ", "'conv1': {'activations': 'u4 affine', 'weights': "), graph, data
    )
    assert str(edited) != str(chosen)


def test_text_of_passes_is_read_as_it_was_written() -> None:
    options = {"layers": {"a[[]0]": (1, 2), "*": None}, "nonlinear": True}
    (found,) = read(pass_text("SVD", options))
    assert (found.kind, found.options) == (SVD, options)
    assert pass_text("FoldBatchNorm", {}) == "fold-batch-norm"
