"""Weights that are computed from other parameters: to every pass that changes weights they are constants."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import images
from rewriting import capture, randomised
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from graphopt.ir import cost
from graphopt.ir.constants import fold_weights
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup import FoldBatchNorm, FoldConstantChannels, Simplify
from graphopt.passes.equalization import AbsorbHighBias, EqualizeChannels
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passes.quantization import MixedPrecision, Quantize, QuantizeWeights
from graphopt.passes.sparsity import Sparsify
from graphopt.targets import find

X = images(16)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


def legacy(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def custom(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": weight_norm, "spectral norm": spectral_norm, "weight norm of old": legacy, "a function": custom,
    "orthogonal": lambda layer: orthogonal(layer, orthogonal_map="cayley"),
}  # fmt: skip
PASSES: list[Any] = [
    FoldBatchNorm(), FoldConstantChannels(), EqualizeChannels(), AbsorbHighBias(), Quantize(find("arm"), [[X]]),
    QuantizeWeights(4, 32), MixedPrecision(find("arm"), [[X]], 6), Prune(0.7),
    Factorize(target_macs=0.8),
]  # fmt: skip


def network(parametrized: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with plain weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 32)]
    uneven = torch.logspace(-1, 1, 32).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        layers[0].weight.mul_(uneven)
    plain = copy.deepcopy(layers)
    made = [parametrized(layer).eval() for layer in layers]
    with torch.no_grad():
        for layer, twin in zip(made, plain, strict=True):
            twin.weight.copy_(layer.weight)
    norm = nn.BatchNorm2d(32)

    def whole(one: nn.Module, two: nn.Module, three: nn.Module) -> nn.Module:
        return nn.Sequential(one, norm, nn.ReLU(), two, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), three)

    model = randomised(whole(*made)).eval()
    return model, whole(*plain).eval()


def applied(transform: Any, model: nn.Module) -> Graph:
    graph = capture(model, X)
    if isinstance(transform, AbsorbHighBias):
        FoldBatchNorm()(graph)
        graph.refresh()
    transform(graph)
    graph.refresh()
    return graph


@pytest.mark.many
@pytest.mark.parametrize("transform", PASSES, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_pass_does_to_computed_weights_what_it_does_to_plain_ones(name: str, transform: Any) -> None:
    model, plain = network(PARAMETRIZED[name])
    found, expected = applied(transform, model), applied(transform, plain)
    assert sqnr(expected(X), found(X)) > 60
    assert cost.macs(found) == cost.macs(expected)
    assert [str(node.target) for node in found.calls()] == [str(node.target) for node in expected.calls()]


@pytest.mark.thorough
def test_what_is_trained_with_masks_keeps_its_parametrization_and_is_refused_by_name() -> None:
    """A mask holds a parameter at zero; one in front of a function of it would hold nothing."""
    graph = capture(network(weight_norm)[0], X)
    with pytest.raises(ValueError, match=r"0\.weight: it is computed from other parameters; Simplify\(\) in front"):
        Sparsify(0.5)(graph)
    Simplify()(graph)
    graph.refresh()
    assert Sparsify(0.5)(graph)
    mixed = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8)).eval()
    said = [str(change) for change in Sparsify(0.5)(capture(mixed, torch.randn(2, 8)))]
    assert any("stays dense: it is computed" in what and "'0'" in what for what in said)


def test_masks_stay_masks_where_weights_are_folded() -> None:
    plain = capture(network(custom)[1], X)
    Sparsify(0.5)(plain)
    assert fold_weights(plain) == []
    assert all(layer.weight.target is torch.ops.aten.mul.Tensor for node in plain.calls() if (layer := Layer.of(node)))


def test_the_callers_model_keeps_its_parametrization() -> None:
    model, _ = network(weight_norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    applied(EqualizeChannels(), model)
    assert parametrize.is_parametrized(model[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
