"""Stages that stop early: what they answer, how many blocks run, and that they quantize and lower like any graph."""

from __future__ import annotations

from pathlib import Path

import gated
import halting_networks as networks
import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt import Graph
from graphopt.analysis.gates import gates
from graphopt.analysis.halting import blocks_run, halting_stages
from graphopt.passes import AddGates, AddHalting, Quantize
from graphopt.targets import find
from graphopt.utils.errors import InputError

X = gated.images(8)


def halting(*, batch: int = 2, **options: object) -> Graph:
    graph = Graph.capture(networks.network(), X[:batch], dynamic_batch=batch > 1)
    AddHalting(**options)(graph)  # type: ignore[arg-type]
    return networks.with_weights(graph)


def test_a_stage_is_a_row_of_blocks_of_one_shape() -> None:
    graph = Graph.capture(networks.network(), X[:2])
    changes = AddHalting()(graph)
    assert [(change.site, change.what.split(",")[0]) for change in changes] == [
        ("one.0", "2 blocks"),
        ("two.0", "3 blocks"),
    ]
    assert [len(stage.rests) for stage in halting_stages(graph)] == [1, 2]
    assert len(gates(graph)) == 3  # of blocks; what stands for shares of the answer is none


def test_untrained_heads_let_all_blocks_run() -> None:
    graph = Graph.capture(networks.network(), X[:2])
    AddHalting()(graph)
    assert blocks_run(graph, [[X[:3]], [X[3:]]]) == {"one.0": 2.0, "two.0": 3.0}


@pytest.mark.parametrize("threshold", [0.01, 0.3])
def test_each_sample_gets_what_the_papers_loop_gives(threshold: float) -> None:
    graph, model = halting(threshold=threshold), networks.network()
    weights = dict(graph.named_parameters())

    def heads(stage: int, count: int) -> list[object]:
        def head(number: int) -> object:
            weight, bias = (weights[f"halting_{stage}.{number}.whole.{part}"] for part in ("weight", "bias"))
            return lambda x: float((x.mean((2, 3)) @ weight.t() + bias).sigmoid())

        return [head(number) for number in range(count)]

    answers, counts = [], []
    with torch.no_grad():
        for x in X.split(1):
            one, ran = networks.stage_by_loops(model.one, heads(0, 1), model.stem(x).relu(), threshold)
            two, then = networks.stage_by_loops(model.two, heads(1, 2), one, threshold)
            answers.append(model.head(two.mean((2, 3))))
            counts.append(ran + then)
        found = graph(X)
    torch.testing.assert_close(found, torch.cat(answers), rtol=1e-4, atol=1e-5)
    mean = torch.tensor(counts).float().mean(0)
    assert list(blocks_run(graph, [[X]]).values()) == pytest.approx(mean.tolist())
    assert len({*map(tuple, counts)}) > 1


def test_the_remainder_is_what_the_last_block_is_weighted_with() -> None:
    (_, stage) = halting_stages(graph := halting())
    rests = [torch.tensor([[0.6], [0.005], [0.6]]), torch.tensor([[0.2], [-0.4], [0.004]])]
    values = dict(zip(stage.rests, rests, strict=True))
    assert stage.blocks(values).flatten().tolist() == [3.0, 1.0, 2.0]
    torch.testing.assert_close(stage.remainder(values).flatten(), torch.tensor([0.2, 1.0, 0.6]))
    assert graph.dynamic_batch


@pytest.mark.parametrize("start", [20.0, -3.0])
def test_positions_stop_by_themselves(start: float) -> None:
    graph = Graph.capture(networks.network(), X[:2])
    AddHalting(what="positions", start=start)(graph)
    assert all(stage.positions for stage in halting_stages(graph))
    assert blocks_run(graph, [[X]]) == ({"one.0": 1.0, "two.0": 1.0} if start > 0 else {"one.0": 2.0, "two.0": 3.0})
    some = blocks_run(networks.with_weights(graph), [[X]])
    assert all(count % 1 for count in some.values())


def test_a_stage_that_stops_at_once_gives_what_its_first_block_gives() -> None:
    graph, model = Graph.capture(networks.network(), X[:2]), networks.network()
    AddHalting(start=30.0)(graph)
    with torch.no_grad():
        expected = model.head(model.two[0](model.one[0](model.stem(X).relu())).mean((2, 3)))
    torch.testing.assert_close(graph(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["samples", "positions"])
def test_tokens_and_samples_of_sequences_stop(what: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    graph = Graph.capture(networks.Tokens().eval(), x)
    AddHalting(what=what, start=30.0)(graph)
    (stage,) = halting_stages(graph)
    assert stage.positions == (what == "positions")
    assert blocks_run(graph, [[x]]) == {stage.name: 1.0}


def test_a_saved_graph_stops_as_before(tmp_path: Path) -> None:
    graph = halting()
    graph.save(tmp_path / "graph.pt2")
    again = Graph.load(tmp_path / "graph.pt2")
    assert blocks_run(again, [[X]]) == blocks_run(graph, [[X]])
    assert torch.equal(again(X), graph(X))


@pytest.mark.parametrize(
    ("target", "what"), [("x86", "samples"), ("tvm-x86", "samples"), ("x86", "positions"), ("tvm-x86", "positions")]
)
def test_it_quantizes_and_is_simulated(target: str, what: str) -> None:
    graph = halting(what=what)
    result = graphopt.optimize(graph, X[:2], target=target, calibration=[*X.split(2)], measure=False)
    assert result.report.integer_macs
    simulation = graphopt.simulate(result.graph, target=target)
    other = gated.images(5, 3)
    assert not [line for line in simulation.mismatches(result.artifact, other) if line.differing]
    assert blocks_run(result.graph, [[other]]).keys() == {"one.0", "two.0"}


def test_one_sample_runs_no_more_than_it_needs_in_onnx_runtime() -> None:
    import onnx

    graph = halting(batch=1)
    result = graphopt.optimize(
        graph, X[:1], target="x86", calibration=[*X.split(1)], measure=False, dynamic_batch=False
    )
    nodes = onnx.load(str(result.artifact.folder / "model.onnx")).graph.node  # type: ignore[attr-defined]
    assert sum(node.op_type == "If" for node in nodes) == 3


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.two(self.one(x).relu())
        return found


def test_what_cannot_stop_is_refused() -> None:
    with pytest.raises(InputError, match="no two residual blocks of one shape in a row"):
        AddHalting()(Graph.capture(Plain().eval(), torch.randn(2, 4)))
    with pytest.raises(InputError, match=r"no stage begins at 'three.*'; there are one.0, two.0|no stage begins at"):
        AddHalting(stages=["three*"])(Graph.capture(networks.network(), X[:2]))
    with pytest.raises(InputError, match="has gates already"):
        AddHalting()(halting())
    gated_graph = gated.residual()
    AddGates()(gated_graph)
    with pytest.raises(InputError, match="has gates already"):
        AddHalting()(gated_graph)
    graph = Graph.capture(networks.network(), X[:2])
    Quantize(find("x86"), [[X]])(graph)
    with pytest.raises(InputError, match="is quantized"):
        AddHalting()(graph)
    for options in ({"threshold": 0.0}, {"what": "blocks"}, {"stages": "one.0"}):
        with pytest.raises(InputError):
            AddHalting(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"apply graphopt\.passes\.AddHalting first"):
        blocks_run(Graph.capture(Plain().eval(), torch.randn(2, 4)), [[torch.randn(2, 4)]])
