"""Whatever runs graphs does with flags, numbers and None among inputs and outputs what it does without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from awkward_models import MODELS, Case, case
from capture_once import capture_once
from torch import Tensor, nn

import graphopt
from graphopt.data.synthesize import without_data
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.reestimate_batchnorm import ReestimateBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passes.pruning.saliency import Activation, Fisher, Taylor
from graphopt.passes.quantization import MixedPrecision, Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passes.sparsity import Sparsify
from graphopt.targets import find
from graphopt.utils.errors import InputError

ARM = find("arm")
Batches = list[list[Tensor]]


class Plain(nn.Module):
    """A case with nothing but tensors: its input tensors in, the floating-point tensors of its result out."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.keywords = case.model, dict(case.keywords)
        self.leaves, self.structure = pytree.tree_flatten(case.inputs(1))

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        found = floating(self.model(*pytree.tree_unflatten(leaves, self.structure), **self.keywords))
        return found if len(found) > 1 else found[0]


def floating(result: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def quantized(graph: Graph, data: Batches, **options: Any) -> Graph:
    return applied(graph, [Simplify(), FoldBatchNorm(), Quantize(ARM, data, **options)])


def applied(graph: Graph, passes: list[Any]) -> Graph:
    for transform in passes:
        assert transform(graph) is not None
        graph.refresh()
    return graph


def analysis(graph: Graph, data: Batches) -> Any:
    found = graphopt.analyze(quantized(graph, data), data, output_samples=10)
    assert (found.samples, found.output_samples) == (32, 10)
    return [(layer.alone, layer.cumulative) for layer in found.layers]


def codes(graph: Graph, data: Batches, *inputs: Any, **keywords: Any) -> Any:
    simulation = graphopt.simulate(quantized(graph, data), "arm")
    return [floating(simulation(*inputs, **keywords)), list(simulation.codes(*inputs, **keywords).values())]


def distilled(graph: Graph, data: Batches) -> Any:
    torch.manual_seed(1)
    return next(iter(without_data(graph.eval())))


def mixed(sensitivity: Any) -> Callable[[Batches], list[Any]]:
    return lambda d: [Simplify(), FoldBatchNorm(), MixedPrecision(ARM, d, 5.0, sensitivity=sensitivity)]


def learned(d: Batches, **options: Any) -> list[Any]:
    return [*prepared(d), LearnRounding(d, batch=8, iterations=3, **options)]


def prepared(d: Batches, **options: Any) -> list[Any]:
    return [Simplify(), FoldBatchNorm(), Quantize(ARM, d, **options)]


PASSES: dict[str, Callable[[Batches], list[Any]]] = {
    "quantize": prepared,
    "quantize by outputs": lambda d: prepared(d, estimator="output_mse"),
    "correct bias": lambda d: [*prepared(d), CorrectBias(d)],
    "refine ranges": lambda d: [*prepared(d), RefineRanges(d, evaluations=4)],
    "gptq": learned,
    "adaround by blocks": lambda d: learned(d, method="adaround", importance=True),
    "adaround by layers": lambda d: learned(d, method="adaround", unit="layer", memory=0),
    "mixed by hessian": mixed("hessian"),
    "mixed by sqnr": mixed("sqnr"),
    "prune": lambda d: [Prune(0.6, data=d)],
    "prune by taylor": lambda d: [Prune(0.6, criterion=Taylor(d))],
    "prune by fisher": lambda d: [Prune(0.6, criterion=Fisher(d))],
    "prune by activation": lambda d: [Prune(0.6, criterion=Activation(d))],
    "sparsify": lambda d: [Sparsify(0.5, criterion="obd", data=d)],
    "factorize": lambda d: [Factorize(target_macs=0.7, data=d)],
    "re-estimate": lambda d: [ReestimateBatchNorm(d)],
}
TOOLS: dict[str, Callable[[Graph, Batches], Any]] = {"analyze": analysis, "distil": distilled}


def both(name: str) -> tuple[Case, Graph, Graph, Batches]:
    """A case, its graph, the graph of the same with nothing but tensors, and data."""
    found = case(name)
    graph, data = found.capture(), found.batches(4, 8)
    plain = capture_once(Plain(found).eval(), tuple(graph.example.tensors()))
    plain.train(graph.training)  # what cleans up in front of the tools does not fold batch norms in training mode
    return found, graph, plain, data


@pytest.mark.many
@pytest.mark.parametrize("tool", PASSES)
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_does_what_it_does_to_the_plain_model(name: str, tool: str) -> None:
    found, graph, plain, data = both(name)
    inputs = found.inputs(8)
    tensors = [leaf for leaf in pytree.tree_leaves((inputs, dict(found.keywords))) if isinstance(leaf, Tensor)]
    mode = graph.training
    for each in (graph, plain):
        torch.manual_seed(1)
        applied(each, PASSES[tool](data))
    assert graph.training is mode
    answer, wanted = floating(graph.eval()(*inputs, **found.keywords)), floating(plain.eval()(*tensors))
    assert len(answer) == len(wanted)
    assert all(map(torch.equal, answer, wanted))


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", MODELS)
def test_what_measures_says_what_it_says_of_the_plain_model(name: str, tool: str) -> None:
    _, graph, plain, data = both(name)
    found, wanted = TOOLS[tool](graph, data), TOOLS[tool](plain, data)
    assert len(found) == len(wanted) > 0
    assert all(a.equal(b) if isinstance(a, Tensor) else a == b for a, b in zip(found, wanted, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_integers_are_those_of_the_plain_model(name: str) -> None:
    found, graph, plain, data = both(name)
    inputs = found.inputs(4)
    tensors = [leaf for leaf in pytree.tree_leaves((inputs, dict(found.keywords))) if isinstance(leaf, Tensor)]
    pairs = zip(codes(graph, data, *inputs, **found.keywords), codes(plain, data, *tensors), strict=True)
    for one, other in pairs:
        assert len(one) == len(other) > 0
        assert all(map(torch.equal, one, other))


def test_a_loss_of_classes_refuses_outputs_without_any() -> None:
    graph = capture_once(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).eval(), torch.randn(4, 4)
    )
    with pytest.raises(InputError, match=r"classes .* first floating-point output, but it is \[8\]"):
        Prune(0.6, criterion=Taylor([[torch.randn(8, 4)]]))(graph)
