"""What measures a network: in eval mode, and each output by its own size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture_once import capture_once
from torch import Tensor, nn

import graphopt
from graphopt.analysis.output_error import Probe
from graphopt.fitting.losses import own_outputs, squared_error
from graphopt.ir.passes import Pass
from graphopt.passes.cleanup.reestimate_batchnorm import ReestimateBatchNorm
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passes.quantization import MixedPrecision, Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passes.sparsity import Sparsify
from graphopt.targets import find

X = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
DATA = [[part] for part in X.split(8)]


def network() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.3, 2)  # type: ignore[union-attr, func-returns-value]
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    layers = [nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers).eval()


QUANTIZE = Quantize(find("x86"), DATA)
PASSES: dict[str, Callable[[], list[Pass]]] = {
    "prune": lambda: [Prune(0.6, data=DATA)],
    "factorize": lambda: [Factorize(target_macs=0.6, data=DATA)],
    "sparsify": lambda: [Sparsify(0.5)],
    "quantize": lambda: [QUANTIZE],
    "mixed precision": lambda: [MixedPrecision(find("x86"), DATA, 6.0)],
    "correct bias": lambda: [QUANTIZE, CorrectBias(DATA)],
    "learn rounding": lambda: [QUANTIZE, LearnRounding(DATA)],
    "refine ranges": lambda: [QUANTIZE, RefineRanges(DATA, evaluations=3)],
    "re-estimate": lambda: [ReestimateBatchNorm(DATA)],
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_finds_in_training_mode_what_it_finds_in_eval_mode(name: str) -> None:
    answers = []
    for training in (False, True):
        torch.manual_seed(1)
        graph = capture_once(network(), X[:2]).train(training)
        for transform in PASSES[name]():
            transform(graph)
        assert graph.training is training
        answers.append(graph.eval()(X))
    torch.testing.assert_close(answers[1], answers[0])


@pytest.mark.thorough
def test_optimize_takes_a_graph_in_training_mode() -> None:
    graph = capture_once(network(), X[:2])
    wanted = graphopt.optimize(graph, target="x86", calibration=X, measure=False).graph(X)
    found = graphopt.optimize(graph.train(), target="x86", calibration=X, measure=False).graph(X)
    assert torch.equal(found, wanted)
    assert graph.training


class Two(nn.Module):
    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.a, self.b = unit, nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x) * self.unit, self.b(x)


def test_damage_does_not_depend_on_the_unit_of_an_output() -> None:
    x, found = torch.randn(16, 4), []
    for unit in (1.0, 640.0):
        torch.manual_seed(0)
        graph = capture_once(Two(unit).eval(), x)
        found.append([Probe(graph, [[x]]).damage(changed={f"{name}.weight": torch.zeros(3, 4)}) for name in "ab"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert 0.1 < found[0][0] / found[0][1] < 10


def test_the_loss_on_all_outputs_does_not_depend_on_their_units() -> None:
    torch.manual_seed(0)
    a, b, noise = torch.randn(8, 3), torch.randn(8, 5), torch.randn(8, 3)
    losses = [float(squared_error((unit * (a + noise), b), (unit * a, b))) for unit in (1.0, 640.0)]
    assert losses[0] == pytest.approx(losses[1])
    torch.manual_seed(0)
    one = own_outputs((a, b), [])
    torch.manual_seed(0)
    torch.testing.assert_close(own_outputs((640 * a, b), []), one)
