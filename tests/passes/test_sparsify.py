"""Which weights are masked, and options that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as reference
from blocks import conv, images
from rewriting import Model, assert_close, capture
from sparsifying import kept, perceptron
from torch import Tensor, nn

from graphopt.data.calibration import Calibration
from graphopt.ir.layer import Layer
from graphopt.passes.sparsity import (
    OptimalBrainDamage,
    Sparsify,
    masks,
    own_outputs,
    zero_share,
)

# ---- Which weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_per_layer_magnitude_masks_what_torch_masks(share: float) -> None:
    model = perceptron()
    graph = capture(model, torch.randn(2, 12))
    changes = Sparsify(share)(graph)
    assert [site for site, _ in changes] == ["0", "2", "4"]
    for i in (0, 2, 4):
        reference.l1_unstructured(model[i], "weight", share)
        assert torch.equal(kept(graph)[f"{i}.weight"], model[i].weight_mask)
    x = torch.randn(5, 12)
    assert_close(graph(x), model(x))


def test_global_magnitude_masks_what_torch_masks() -> None:
    model = perceptron()
    with torch.no_grad():
        model[4].weight.mul_(2)  # one layer stands out, so that equal shares would be something else
    graph = capture(model, torch.randn(2, 12))
    Sparsify(0.6, scope="global")(graph)
    reference.global_unstructured([(model[i], "weight") for i in (0, 2, 4)], reference.L1Unstructured, amount=0.6)
    for i in (0, 2, 4):
        assert torch.equal(kept(graph)[f"{i}.weight"], model[i].weight_mask)
    assert zero_share(graph) == pytest.approx(0.6, abs=0.002)
    assert model[4].weight_mask.mean() > 0.5


def test_named_layers_keep_out_of_the_ranking() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    changes = Sparsify(0.8, scope="global", layers={"0": 0.25, "4*": None, "*": 0.9})(graph)
    assert changes == [("0", "25.0 % zeros"), ("2", "89.8 % zeros")]
    assert "4.weight" not in kept(graph)


@pytest.mark.parametrize("best, block", [(2, 4), (1, 4), (1, 2), (4, 8)])
def test_of_every_block_along_the_input_channels_the_largest_stay(best: int, block: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 16, groups=1), nn.Flatten(), nn.Linear(16 * 64, 5))
    graph = capture(model, images(2))
    changes = dict(Sparsify(pattern=(best, block))(graph))
    assert changes["0"] == f"stays dense: 3 input channels are no multiple of {block}"
    assert changes["2"].startswith(f"{best}:{block}, ")
    for index in (2, 4):
        weight, mask = model[index].weight.detach(), kept(graph)[f"{index}.weight"]
        for start in range(0, weight.shape[1], block):
            part, stays = weight[:, start : start + block].abs(), mask[:, start : start + block]
            assert bool((stays.sum(1) == best).all())
            smallest = part.masked_fill(stays == 0, float("inf")).amin(1)
            assert bool((smallest >= part.masked_fill(stays == 1, 0).amax(1)).all())


def test_a_transposed_convolution_has_its_pattern_along_the_input_channels_of_each_group() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, groups=2))
    graph = capture(model, torch.randn(2, 8, 4, 4))
    Sparsify(pattern=(2, 4))(graph)
    mask = kept(graph)["0.weight"]  # [in, out / groups, 2, 2]
    assert bool((mask[:4].sum(0) == 2).all())
    assert bool((mask[4:].sum(0) == 2).all())


def test_saliency_of_a_quadratic_loss_is_the_rise_of_that_loss() -> None:
    """For y = w x and the loss y^2 / 2 the gradient of a sample is (w x) x; its square averaged and times w^2 / 2 by hand."""
    layer = nn.Linear(4, 1, bias=False)
    graph = capture(nn.Sequential(layer), torch.randn(2, 4))
    x = torch.randn(7, 4)
    criterion = OptimalBrainDamage([[x[:4]], [x[4:]]], lambda y, batch: (y**2).sum() / 2)
    node = Layer.of(graph.calls()[0]).weight  # type: ignore[union-attr]
    scores = criterion.prepare(graph, [node])(graph, node)
    gradient = layer(x).detach() * x  # [samples, 4]
    assert_close(scores, (gradient**2).mean(0, keepdim=True) * layer.weight.detach() ** 2 / 2)


def test_what_stands_behind_the_inputs_is_for_the_loss() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    x, y = torch.randn(6, 12), torch.tensor([0, 1, 2, 0, 1, 2])
    seen: list[tuple[int, ...]] = []

    def loss(output: Any, sample: list[Tensor]) -> Tensor:
        seen.append((len(sample[0]), int(sample[1])))
        return F.cross_entropy(output, sample[1])

    Sparsify(0.5, criterion="obd", data=[[x, y]], loss=loss)(graph)
    assert seen == [(1, i) for i in y.tolist()]


@pytest.mark.thorough
def test_saliency_masks_weights_of_inputs_that_never_move() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[:, 3] = 100.0  # large, and useless: the data are zero there
    graph = capture(model, torch.randn(2, 12))
    x = torch.randn(32, 12)
    x[:, 3] = 0
    Sparsify(0.3, criterion="obd", data=[[x]])(graph)
    assert not kept(graph)["0.weight"][:, 3].any()
    Sparsify(0.3)(other := capture(model, torch.randn(2, 12)))
    assert kept(other)["0.weight"][:, 3].all()


def test_the_distance_to_own_outputs_sees_what_a_sure_network_hides() -> None:
    """Of two classes without doubt, cross-entropy has no gradient; outputs still move: their squared derivative is x^2 here."""
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[60.0, 60, 60], [-60, -60, -60]]))
    x = torch.rand(40, 3) + 1
    graph = capture(nn.Sequential(layer), x[:2])
    node = Layer.of(graph.calls()[0]).weight  # type: ignore[union-attr]
    sure = OptimalBrainDamage([[x]]).prepare(graph, [node])(graph, node)
    seen = OptimalBrainDamage([[x]], own_outputs).prepare(graph, [node])(graph, node)
    assert not sure.any()
    assert_close(seen, (x**2).mean(0).expand(2, 3) * 60**2 / 2)


def test_an_own_criterion_decides() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    Sparsify(0.5, criterion=lambda graph, weight: -graph.tensor(weight))(graph)
    weight, mask = graph.state_dict()["0.weight"], kept(graph)["0.weight"]
    assert float(weight[mask == 1].max()) < float(weight[mask == 0].min())


def test_a_shared_weight_is_masked_once_and_one_read_by_an_embedding_is_left() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.inner(m.inner(m.words(x)))
        return F.linear(y, m.words.weight)

    model = Model(body, words=nn.Embedding(10, 8), inner=nn.Linear(8, 8))
    graph = capture(model, torch.zeros(2, 3, dtype=torch.long))
    changes = Sparsify(0.5)(graph)
    graph.refresh()
    assert changes[0].what == "50.0 % zeros"
    assert changes[1] == ("words", "stays dense: embedding reads the weight, too")
    (found,) = masks(graph)
    assert [reader.target for reader in found.product.users] == [torch.ops.aten.linear.default] * 2
    expected = copy.deepcopy(model)
    reference.l1_unstructured(expected.inner, "weight", 0.5)
    x = torch.randint(0, 10, (2, 3))
    assert_close(graph(x), expected(x))


# ---- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "say how much"),
        ({"sparsity": 1.0}, "sparsity must be over 0 and under 1, got 1.0"),
        ({"sparsity": float("nan")}, "sparsity must be over 0"),
        ({"sparsity": 0.5, "layers": {"a": 0.0}}, r"layers\['a'\] must be over 0"),
        ({"pattern": (4, 4)}, "0 < N < M"),
        ({"pattern": (2, 4, 8)}, "0 < N < M"),
        ({"pattern": (2, 4), "sparsity": 0.5}, "a pattern says by itself"),
        ({"pattern": (2, 4), "scope": "global"}, "a pattern says by itself"),
        ({"pattern": (2, 4), "layers": {"a": 0.5}}, "can only be left dense"),
        ({"sparsity": 0.5, "criterion": "size"}, "criterion must be"),
        ({"sparsity": 0.5, "criterion": "obd"}, "needs data"),
        ({"sparsity": 0.5, "scope": "all"}, "scope must be one of layer, global"),
        ({"sparsity": 0.5, "schedule": "fast"}, "schedule must be one of linear, cubic"),
        ({"sparsity": 0.5, "steps": 0}, "steps must be a whole number"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsify(**options)


BAD: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (lambda g, w: g.tensor(w)[0], r"one score per weight, \[16, 12\], got \[12\]"),
    "type": (lambda g, w: 1.0, "got float"),
    "NaN": (lambda g, w: g.tensor(w) * float("nan"), "returned NaN"),
}


@pytest.mark.parametrize("criterion, message", BAD.values(), ids=BAD)
def test_a_criterion_that_does_not_fit_is_told(criterion: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsify(0.5, criterion=criterion)(capture(perceptron(), torch.randn(2, 12)))


def test_a_graph_that_does_not_fit_is_told() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    with pytest.raises(ValueError, match="no layer matches 'head'; layers are named like 0, 2, 4"):
        Sparsify(0.5, layers={"head": None})(graph)
    with pytest.raises(ValueError, match="no layer can be sparsified: there is none"):
        Sparsify(0.5, layers={"*": None})(graph)
    with pytest.raises(ValueError, match=r"0\.weight: 12 input channels are no multiple of 5"):
        Sparsify(pattern=(2, 5))(graph)
    with pytest.raises(ValueError, match="the data are empty"):
        Sparsify(0.5, criterion="obd", data=[])(graph)
    with pytest.raises(ValueError, match="the loss on a sample is nan"):
        Sparsify(0.5, criterion="obd", data=[[torch.full((1, 12), float("nan"))]])(graph)
    with pytest.raises(ValueError, match="gone through several times"):
        Sparsify(0.5, criterion="obd", steps=2, data=Calibration(iter([torch.randn(2, 12)]), graph))
    assert replace(Sparsify(0.5), sparsity=0.6).sparsity == 0.6
    assert masks(graph) == []
