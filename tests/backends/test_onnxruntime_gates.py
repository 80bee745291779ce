"""Gates on ONNX Runtime: what a closed gate leaves out does not run, and the simulation answers the same, bit for bit."""

from __future__ import annotations

from typing import Any

import gated
import onnx
import pytest
import torch
from rewriting import apply
from torch import Tensor, nn

import graphopt
from graphopt import Graph
from graphopt.analysis.gates import gates
from graphopt.backends.onnxruntime import audit as audit_of
from graphopt.backends.onnxruntime import lower
from graphopt.passes import Quantize
from graphopt.targets import find, machine_here

X = gated.images(16, seed=5)


def optimized(**options: Any) -> Any:
    batch = options.pop("batch", True)
    graph = gated.gated(batch=batch, **options)
    x = gated.images(32)
    return graphopt.optimize(
        graph, x[:1], target="x86", calibration=x, rounding="nearest", measure=False, dynamic_batch=batch
    )


def operators(graph: Any) -> list[str]:
    return [node.op_type for node in graph.node]


def choices(path: Any) -> list[Any]:
    return [node for node in onnx.load(str(path)).graph.node if node.op_type == "If"]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("heads", ["each", "one"])
def test_a_gated_network_is_simulated_bit_for_bit(batch: bool, heads: str) -> None:
    found = optimized(batch=batch, heads=heads)
    simulation = graphopt.simulate(found.graph, "x86", machine=machine_here())
    ways = set()
    for one in X.split(1):
        assert torch.equal(found.artifact(one), simulation(one))
        ways.add(tuple(gated.openings(found.graph, one)[0].tolist()))
    assert len(ways) > 2
    if batch:
        assert torch.equal(found.artifact(X), simulation(X))


def test_one_sample_runs_a_block_or_its_shortcut_alone() -> None:
    found = optimized(batch=False)
    model = onnx.load(str(found.artifact.folder / "model.onnx"))
    main = operators(model.graph)
    assert main.count("If") == 3
    assert main.count("Conv") == 2  # the stem, and the shortcut that both sides of a gate need
    for node in choices(found.artifact.folder / "model.onnx"):
        then, other = (attribute.g for attribute in node.attribute)
        assert operators(then).count("Conv") == 2
        assert "Conv" not in operators(other)


def test_any_batch_leaves_a_block_out_where_no_sample_needs_it() -> None:
    found = optimized(batch=True)
    then, other = (attribute.g for attribute in choices(found.artifact.folder / "model.onnx")[0].attribute)
    assert operators(then)[-1] == "Where"
    assert "Conv" not in operators(other)


def test_codes_alone_cross_the_borders() -> None:
    found = optimized(batch=False)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(found.artifact.folder / "model.onnx")))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert [kinds[node.output[0]] for node in model.graph.node if node.op_type == "If"] == [onnx.TensorProto.UINT8] * 3


def test_the_audit_sees_what_runs_inside() -> None:
    audit = audit_of(optimized(batch=False).artifact)
    assert audit.integer_macs == audit.total_macs


def test_float_networks_are_computed_as_needed_too() -> None:
    graph = gated.gated(batch=False)

    artifact = lower(graph, find("x86"))
    assert len(choices(artifact.folder / "model.onnx")) == 3
    for one in X.split(1):
        torch.testing.assert_close(artifact(one), graph(one), rtol=1e-4, atol=1e-4)


def test_gates_of_channels_stay_choices_of_values() -> None:
    found = optimized(what="channels")
    assert not choices(found.artifact.folder / "model.onnx")
    assert {gate.channels for gate in gates(found.graph)} == {8, 16}
    simulation = graphopt.simulate(found.graph, "x86", machine=machine_here())
    assert torch.equal(found.artifact(X), simulation(X))


class Nested(nn.Module):
    """A block that may be left out inside of one that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.outer(x)
        run = (self.second(made.mean((2, 3))) > 0)[:, :, None, None]
        branch = torch.where(run, made + self.inner(made), made)
        return torch.where((self.first(x.mean((2, 3))) > 0)[:, :, None, None], branch + x, x)


@pytest.mark.parametrize("batch", [False, True])
def test_gates_inside_of_gates_are_simulated_bit_for_bit(batch: bool) -> None:
    torch.manual_seed(0)
    graph = Graph.capture(Nested().eval(), X[:1], dynamic_batch=batch)
    apply(Quantize(find("x86"), [[one] for one in X.split(1)]), graph)
    assert len(gates(graph)) == 2
    artifact, simulation = lower(graph, find("x86")), graphopt.simulate(graph, "x86", machine=machine_here())
    for one in X.split(1):
        assert torch.equal(artifact(one), simulation(one))
