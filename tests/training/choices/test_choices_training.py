"""Training graphs with choices: what is sampled, what is learned, and that an interrupted training goes on bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn
from training import Stops

from graphopt import Graph, InputError, train
from graphopt.analysis.choices import Costs, extract
from graphopt.execution.executor import Executor
from graphopt.ir.choices import CHOOSE, assignment, choices
from graphopt.passes.cleanup.reestimate_batchnorm import ReestimateBatchNorm
from graphopt.spaces import Choice, Zero
from graphopt.training.choices import Binary, Gumbel, Markov, Progressive, Sandwich, SinglePath, Softmax


def supernet() -> Graph:
    """Where the second choice has an option that sees nothing, so that the others have to be found better."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), Choice([Zero(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)]),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    return Graph.capture(model.eval(), (X[:2],))


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    return 100 * float((model(X).argmax(1) == Y).double().mean())


@pytest.mark.parametrize("make", [Softmax, Gumbel, Binary])
def test_an_option_that_sees_nothing_is_not_learned(make: Any) -> None:
    graph = supernet()
    train(graph, (X, Y), compress=[make(validation=(X, Y), rate=0.1)], epochs=25, batch_size=32, rate=0.01)
    weights = graph.tensor(choices(graph)[0].node)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert float(weights[0]) < 0.1
    assert accuracy(extract(graph, assignment(graph))) > accuracy(extract(graph, [0])) + 10


def test_a_budget_makes_what_is_learned_cheaper() -> None:
    found = []
    for share in (1.0, 0.3):
        graph = elastic()
        options = Markov(validation=(X, Y), rate=0.2, budget={"macs": share}, strictness=10.0)
        train(graph, (X, Y), compress=[options], epochs=10, batch_size=32)
        costs = Costs(graph)
        weights = [graph.tensor(choice.node) for choice in costs.choices]
        assert all(float(w.sum()) == pytest.approx(1, abs=1e-4) for w in weights)
        found.append(sum(float(term.of(weights)) for term in costs.macs()))
    assert found[1] < 0.6 * found[0]


def test_sub_networks_of_a_sandwich_answer_without_training_of_their_own() -> None:
    scores = {}
    for name, compress in (("plain", []), ("sandwich", [Sandwich(1)])):
        graph = elastic()
        train(graph, (X, Y), compress=compress, epochs=15, batch_size=32, rate=0.01)
        smallest = tuple(len(choice) - 1 for choice in choices(graph))
        small = extract(graph, smallest)
        ReestimateBatchNorm([[X]])(small)
        scores[name] = accuracy(small)
    assert scores["sandwich"] > scores["plain"] + 5


def test_single_paths_are_drawn_evenly_and_fair_ones_exactly() -> None:
    graph = elastic()
    fair = SinglePath(fair=True)
    fair.attach(graph)
    for options in zip(*fair.draw(0.0), strict=True):
        assert set(options) == set(range(max(options) + 1))
    plain = SinglePath()
    plain.attach(graph)
    seen = {options for _ in range(200) for options in plain.draw(0.0)}
    assert len(seen) > 10


def test_progressive_shrinking_opens_one_kind_after_the_other() -> None:
    graph = elastic()
    method = Progressive(3, stages=[("kernel", 0.0), ("width", 0.5)])
    method.attach(graph)
    kinds = [choice.kind for choice in choices(graph)]
    early, late = method.draw(0.2), method.draw(0.8)
    assert {o for options in early for o, kind in zip(options, kinds, strict=True) if kind == "width"} == {0}
    assert {o for options in late for o, kind in zip(options, kinds, strict=True) if kind == "width"} != {0}
    assert {o for options in early for o, kind in zip(options, kinds, strict=True) if kind == "kernel"} != {0}


def test_after_sampling_the_graph_is_the_largest_and_still_elastic() -> None:
    graph = elastic()
    before = [(c.name, c.kind, c.labels) for c in choices(graph)]
    train(graph, (X, Y), compress=[Sandwich(1)], epochs=1, batch_size=32)
    assert [(c.name, c.kind, c.labels) for c in choices(graph)] == before
    assert set(assignment(graph)) == {0}


def test_only_what_runs_is_computed_by_binary_gates() -> None:
    graph = supernet()
    method = Binary(validation=(X, Y))
    method.attach(graph)
    runner = Executor(graph)
    for weights, most in ((True, 1), (False, 2)):
        method.sample(0.5, weights=weights)
        walked = set(runner.walk(runner.inputs([X]), graph.outputs))
        (call,) = graph.calls(CHOOSE)
        assert sum(option in walked for option in call.args[0]) == most  # type: ignore[union-attr]
    method.finish(graph)
    assert len(choices(graph)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sandwich(1),
        lambda: SinglePath(fair=True),
        lambda: Gumbel(validation=(X, Y)),
        lambda: Binary(validation=(X, Y)),
    ],
)
def test_an_interrupted_training_goes_on_bit_for_bit(make: Any, tmp_path: Path) -> None:
    def trained(folder: Path | None, stop: int | None) -> dict[str, Tensor]:
        graph = supernet() if isinstance(make(), (Gumbel, Binary)) else elastic()
        train(graph, (X, Y), compress=[Stops(stop), make()], epochs=2, batch_size=32, checkpoint=folder)
        return graph.state_dict()

    whole = trained(None, None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "kept", 4)
    again = trained(tmp_path / "kept", None)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_bad_options_are_named() -> None:
    plain = Graph.capture(nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    for method in (Sandwich(), Softmax(validation=(X, Y))):
        with pytest.raises(InputError, match="has no choices"):
            train(plain, (torch.randn(8, 3), torch.zeros(8).long()), compress=[method])
    with pytest.raises(InputError, match="budget takes macs and parameters"):
        Gumbel(validation=(X, Y), budget={"ms": 0.5})
    with pytest.raises(InputError, match="stages are kinds"):
        Progressive(stages=[("depth", 0.0)])
    with pytest.raises(InputError, match="kinds width"):
        train(supernet(), (X, Y), compress=[Markov(validation=(X, Y))])
