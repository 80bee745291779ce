"""A simulated graph, its deployed form and ONNX Runtime answer alike, and the graph trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, lowered, simulated, target_of
from quantizing import X86, grids, quantized, scales
from rewriting import Model
from torch import Tensor, nn

from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

# ---- Simulated == deployed == ONNX Runtime --------------------------------------------------------------------------


def output_step(graph: Graph) -> float | None:
    """One step of the grid the output stands on; None for a float output."""
    node = graph.outputs[0]
    return float(graph.tensor(node.args[1])) if node.target is FAKE_QUANTIZE else None


ALIKE = [(block, "x86") for block in BLOCKS] + [(block, "arm") for block in ("residual", "relu6", "squeeze-excite")]


@pytest.mark.parametrize(("block", "target"), ALIKE)
def test_simulation_deployment_and_runtime_answer_alike(block: str, target: str) -> None:
    model, graph, artifact = lowered(block, target)
    x = images(64, seed=7)
    with torch.no_grad():
        expected, simulation, deployed, runtime = model(x), graph(x), deploy(graph)(x), artifact(x)
    torch.testing.assert_close(deployed, simulation, rtol=1e-5, atol=1e-5)
    assert sqnr(expected, simulation) > 20
    # a rounding that falls the other way moves a float output by about a step of the grid in front of it
    assert sqnr(simulation, runtime) > sqnr(expected, simulation)
    assert float((runtime.argmax(1) == simulation.argmax(1)).double().mean()) >= 0.98


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_an_integer_output_differs_by_at_most_one_step(target: str) -> None:
    from graphopt.backends.onnxruntime import lower

    graph = simulated(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)), target_of(target))
    x = images(32, seed=7)
    with torch.no_grad():
        simulation, runtime = graph(x), lower(graph, target_of(target))(x)
    step = output_step(graph)
    assert step is not None
    assert float((simulation - runtime).abs().max()) <= step * 1.001
    assert float((simulation != runtime).double().mean()) < 0.01


# ---- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_training_the_simulated_graph_reduces_its_loss() -> None:
    teacher, student = (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval() for _ in range(2))
    x = images(32)
    graph = quantized(student, x, weights=Format(4, per_channel=True))
    goal = teacher(x).detach()
    optimizer = torch.optim.Adam(graph.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (graph(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_target_of_ones_own_decides_what_is_integer() -> None:
    own = X86.replace(integer=frozenset({"conv"}), moves=frozenset(), float_output=frozenset())
    graph = quantized(Model(lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2)).sum((2, 3)), a=conv(3, 4), b=conv(4, 2)), images(2),
                      target=own)  # fmt: skip
    assert grids(graph) == ["input", "relu", "max_pool2d", "conv2d"]
    assert len(set(scales(graph))) == 4


def test_a_sum_with_the_models_input_is_integer_when_the_other_half_is() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.conv(x))

    data = torch.randn(8, 4, 6, 6)
    graph = Graph.capture(Residual().eval(), data[:1])
    Quantize(find("x86"), [[data]])(graph)
    assert graph.output.all_input_nodes[0].target is FAKE_QUANTIZE
