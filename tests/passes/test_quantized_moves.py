"""Activations behind moves: one grid, and a simulation that answers what the artifact answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.ops import family
from graphopt.passes.quantization import Quantize
from graphopt.targets import architecture, find, machine_here

Forward = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.answer = forward
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d, self.e = nn.Conv2d(8, 4, 1), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self, x)


def rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


SINGLE: dict[str, Forward] = {
    "max pool, relu": lambda n, x: n.c(F.max_pool2d(n.a(x), 2).relu()),
    "transpose, relu6": lambda n, x: n.c(F.relu6(n.a(x).transpose(2, 3))),
    "transpose, narrow clamp": lambda n, x: n.c(n.a(x).transpose(2, 3).clamp(-0.1, 0.4)),
    "pad, relu": lambda n, x: n.c(F.pad(n.a(x), [1, 1, 1, 1]).relu()),
    "several moves, relu": lambda n, x: n.e(n.d(rows(n.a(x))).reshape(-1, 8).relu().reshape(-1, 256, 8)),
    "slice of a sum, relu": lambda n, x: n.c((n.b(y := n.a(x).relu()) + y)[:, :, 2:].relu()),
}
SEVERAL: dict[str, Forward] = {
    "two readers of a layer": lambda n, x: n.c(n.b((y := n.a(x)).relu()) + y),
    "two readers of a move": lambda n, x: n.c(n.b((y := F.max_pool2d(n.a(x), 2)).relu()) + y),
    "two clips in a row": lambda n, x: n.c(n.a(x).relu().transpose(2, 3).clamp(max=0.4)),
    "parts of a split": lambda n, x: n.c(torch.cat([(p := n.a(x).chunk(2, 1))[0].relu(), p[1].clamp(-0.1, 0.1)], 1)),
    "pad above its filler": lambda n, x: n.c(F.pad(n.a(x), [1, 1, 1, 1]).clamp(min=0.1)),
}


def optimized(forward: Forward, target: str, x: Tensor, estimator: str = "mse") -> graphopt.Optimized:
    torch.manual_seed(0)
    how = {"calibration": x, "estimator": estimator, "measure": False}
    return graphopt.optimize(Network(forward).eval(), x, target=target, **how)


@pytest.mark.parametrize("target", ["x86", "hexagon", "nvidia", "tvm-x86"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_clip_behind_moves_goes_in_front_of_them(name: str, target: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    model = Network(SINGLE[name])
    graph = capture(model.eval(), x)
    wanted = graph(x)
    apply(Quantize(find(target), [[x]]), graph)
    for quantizer in graph.calls(FAKE_QUANTIZE):
        source = quantizer.args[0]
        assert family(source) not in ("relu", "clamp") or family(source.args[0]) in ("conv", "linear", "add")  # type: ignore[union-attr]
        graph.replace(quantizer, source)  # type: ignore[arg-type]
    graph.refresh()
    if not find(target).formats.rest:
        torch.testing.assert_close(graph(x), wanted)


@pytest.mark.skipif(architecture() != "x86_64", reason="kernels of ONNX Runtime on x86")
@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("name", SINGLE | SEVERAL)
def test_the_simulation_answers_what_the_artifact_answers(name: str, target: str) -> None:
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = optimized((SINGLE | SEVERAL)[name], target, x)
    simulation = graphopt.simulate(result.graph, target, machine=machine_here())
    assert torch.equal(simulation(x), result.artifact(x))
    assert [str(line) for line in simulation.mismatches(result.artifact, x) if line.differing] == []


@pytest.mark.thorough
@pytest.mark.skipif(architecture() != "x86_64", reason="kernels of ONNX Runtime on x86")
def test_what_only_a_watched_artifact_answers_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quantizers behind each other: the runtime merges them unless the codes between them are returned."""
    monkeypatch.setattr("graphopt.passes.quantization.quantize.clip_before_moves", lambda graph, target: [])
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = optimized(lambda n, x: n.c(n.a(x).transpose(2, 3).relu()), "x86", x, "percentile")  # clips: two grids
    simulation = graphopt.simulate(result.graph, "x86", machine=machine_here())
    assert not torch.equal(simulation(x), result.artifact(x))
    assert [line.kernel for line in simulation.mismatches(result.artifact, x) if line.differing] == ["merged kernels"]
