"""Masks hold weights at zero in the graph, through training, and end up as zeros in the artifact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as reference
from blocks import BLOCKS, conv, images, model_of
from rewriting import Model, apply, assert_close, capture, randomised
from torch import Tensor, nn

import graphopt
from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.trace import Trace
from graphopt.backends.onnxruntime import lower
from graphopt.data.calibration import Calibration
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.passes.sparsity import (
    BakeMasks,
    OptimalBrainDamage,
    Sparsify,
    bake,
    masks,
    own_outputs,
    release,
    zero_share,
)
from graphopt.passmanager.runner import run
from graphopt.targets import find


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def small(name: str = "residual") -> Graph:
    torch.manual_seed(0)
    return Graph.capture(model_of(name).eval(), images(2))


def kept(graph: Graph) -> dict[str, Tensor]:
    """Every mask by the name of its weight."""
    return {str(m.weight.target): graph.tensor(m.mask) for m in masks(graph)}


def train(graph: Graph, steps: int = 20, rate: float = 0.05, **options: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 12, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    optimizer = torch.optim.SGD(graph.parameters(), rate, momentum=0.9, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(graph(x), y).backward()
        optimizer.step()


# ---- Which weights ----------------------------------------------------------------------------------------------------


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


# ---- Steps and training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, shares", [("linear", [0.2, 0.4, 0.6, 0.8]), ("cubic", [0.4625, 0.7, 0.7875, 0.8])])
def test_the_share_grows_as_the_schedule_says(schedule: Any, shares: list[float]) -> None:
    graph = capture(nn.Sequential(nn.Linear(40, 50)), torch.randn(2, 40))
    seen: list[float] = []
    Sparsify(0.8, steps=4, schedule=schedule, fine_tune=lambda g: seen.append(zero_share(g)))(graph)
    assert seen == pytest.approx(shares, abs=1e-6)


def test_a_further_run_starts_from_the_share_there_is() -> None:
    """Scores may be negative; what is masked stays masked all the same."""
    graph = capture(nn.Sequential(nn.Linear(40, 50)), torch.randn(2, 40))
    seen: list[float] = []
    Sparsify(0.4)(graph)
    options: dict[str, Any] = {"steps": 2, "fine_tune": lambda g: seen.append(zero_share(g))}
    Sparsify(0.8, criterion=lambda g, w: -g.tensor(w), **options)(graph)
    assert seen == pytest.approx([0.6, 0.8], abs=1e-6)


def test_a_pattern_grows_block_by_block() -> None:
    graph = capture(nn.Sequential(nn.Linear(8, 6)), torch.randn(2, 8))
    seen: list[float] = []
    Sparsify(pattern=(2, 4), steps=2, fine_tune=lambda g: seen.append(zero_share(g)))(graph)
    assert seen == [0.25, 0.5]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_only_grow(scope: Any) -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    Sparsify(0.5, scope=scope)(graph)
    first = {name: mask.clone() for name, mask in kept(graph).items()}
    with torch.no_grad():  # what is masked now would be the first to stay
        for name, parameter in graph.named_parameters():
            if name in first:
                parameter += 100 * (1 - first[name])
    assert Sparsify(0.3, scope=scope)(graph) == []
    assert all(torch.equal(mask, first[name]) for name, mask in kept(graph).items())
    assert Sparsify(0.75, scope=scope)(graph)
    assert all(bool((mask <= first[name]).all()) for name, mask in kept(graph).items())
    assert zero_share(graph) == pytest.approx(0.75, abs=0.01)
    assert len(masks(graph)) == 3
    assert Sparsify(0.75, scope=scope)(graph) == []


def test_masked_weights_stay_zero_while_the_rest_trains() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    held = [parameter for _, parameter in graph.named_parameters()]
    Sparsify(0.7)(graph)
    assert all(a is b for a, (_, b) in zip(held, graph.named_parameters(), strict=True))  # an optimizer keeps working
    before = {name: parameter.detach().clone() for name, parameter in graph.named_parameters()}
    graph.train()
    train(graph)
    graph.eval()
    for name, mask in kept(graph).items():
        moved = graph.state_dict()[name] - before[name]
        assert not moved[mask == 0].any()
        assert (moved[mask == 1] != 0).float().mean() > 0.5  # a dead unit has no gradient
    assert zero_share(graph) == pytest.approx(0.7, abs=0.01)


def test_dense_sparse_dense() -> None:
    """Mask, train, release, train: the network computes the same at the release, and all weights move afterwards."""
    graph, x = capture(perceptron(), torch.randn(2, 12)), torch.randn(6, 12)
    train(graph)
    names = {name for name, _ in graph.named_parameters()}
    Sparsify(0.5)(graph)
    train(graph)
    gone = {name: mask == 0 for name, mask in kept(graph).items()}
    sparse = graph(x).detach()
    assert release(graph)[0] == ("0", "96 weights released")
    assert torch.equal(graph(x), sparse)
    assert not masks(graph)
    assert {name for name, _ in graph.named_parameters()} == names
    assert all(not graph.state_dict()[name][where].any() for name, where in gone.items())
    train(graph)
    assert zero_share(graph) < 0.1
    assert all(graph.state_dict()[name][where].any() for name, where in gone.items())


def test_released_weights_come_back_where_asked() -> None:
    model, x = perceptron(), torch.randn(6, 12)
    graph = capture(model, x)
    Sparsify(0.5)(graph)
    release(graph, restore=True)
    assert torch.equal(graph(x), model(x))
    assert release(graph) == []


# ---- The graph ----------------------------------------------------------------------------------------------------------


def test_masks_survive_files_copies_and_modes(tmp_path: Path) -> None:
    graph, x = small(), images(4)
    Sparsify(0.6)(graph)
    graph.save(tmp_path / "graph.pt2")
    for other in (Graph.load(tmp_path / "graph.pt2"), graph.clone(), copy.deepcopy(graph), graph.train().eval()):
        assert torch.equal(other(x), graph(x))
        assert {k: v.tolist() for k, v in kept(other).items()} == {k: v.tolist() for k, v in kept(graph).items()}
        assert {n for n, _ in other.named_parameters()} == {n for n, _ in graph.named_parameters()}
    copied = graph.clone()
    Sparsify(0.9)(copied)
    assert zero_share(graph) == pytest.approx(0.6, abs=0.01)


def test_simplify_leaves_masks_and_bake_takes_them_away() -> None:
    graph, x = small(), images(4)
    text, names = str(graph), set(graph.state_dict())
    Sparsify(0.6)(graph)
    apply(Simplify(), graph)
    assert len(masks(graph)) == 4
    before = graph(x)
    assert apply(BakeMasks(), graph)[0].what == "mask baked in, 130 of 216 weights are zero"
    assert torch.equal(graph(x), before)
    assert set(graph.state_dict()) == names
    assert zero_share(graph) == pytest.approx(0.6, abs=0.01)
    assert not any(bool(torch.signbit(w[w == 0]).any()) for n, w in graph.state_dict().items() if n == "first.0.weight")
    assert bake(graph) == []
    apply(Simplify(), other := small())
    assert str(graph) == str(other)
    assert str(other) != text


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("transform", [FoldBatchNorm(), EqualizeChannels(), FoldConstantChannels()], ids=repr)
def test_passes_that_need_constants_bake_first_and_keep_zeros(name: str, transform: Any) -> None:
    masked = small(name)
    Sparsify(0.6)(masked)
    baked = masked.clone()
    bake(baked)
    x = images(4)
    expected = masked(x).detach()
    run([transform], masked)
    run([transform], baked)
    assert str(masked) == str(baked)
    assert_close(masked(x), expected)
    assert zero_share(masked) >= zero_share(baked) - 1e-9 > 0.55


def test_what_torch_pruned_is_a_mask_too() -> None:
    model, x = perceptron(), torch.randn(4, 12)
    reference.l1_unstructured(model[0], "weight", 0.5)
    expected = model(x)
    graph = capture(model, x)
    assert list(kept(graph)) == ["0.weight_orig"]
    bake(graph)
    assert not masks(graph)
    assert_close(graph(x), expected)


def test_a_product_of_constants_that_is_no_mask_is_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("mask", torch.ones(3, 4).tril())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask)

    graph = capture(Scaled(), torch.randn(2, 4))
    assert masks(graph) == []
    assert release(graph) == []
    with pytest.raises(ValueError, match="no layer can be sparsified"):
        Sparsify(0.5)(graph)


# ---- Lowering -----------------------------------------------------------------------------------------------------------


def stored(artifact: Any) -> dict[str, np.ndarray[Any, Any]]:
    model = onnx.load(artifact.folder / "model.onnx")
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.thorough
def test_zeros_are_zero_codes_in_the_artifact() -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)))
    x = torch.randn(8, 4, 8, 8)
    graph = capture(model, x)
    Sparsify(0.7, scope="global")(graph)
    result = graphopt.optimize(graph, target="x86", calibration=x, measure=False)
    codes = [a for a in stored(result.artifact).values() if a.dtype in (np.int8, np.uint8) and a.ndim > 1]
    for mask in kept(graph).values():
        zeros = mask.numpy() == 0
        found = [a for a in codes if a.shape == zeros.shape or a.T.shape == zeros.shape]
        assert any(not (a if a.shape == zeros.shape else a.T)[zeros].any() for a in found), (zeros.shape, codes)
    assert len(masks(graph)) == 3  # the caller's graph keeps its masks
    assert zero_share(result.graph) == pytest.approx(0.7, abs=0.01)
    (note,) = [note for note in result.report.notes if "zero" in note]
    assert note.startswith("70.0% of the weights are zero: that saves storage")
    assert "saves no time" in note
    assert result.artifact.compressed_bytes < 0.8 * graphopt.optimize(
        model, x, target="x86", calibration=x, measure=False
    ).artifact.compressed_bytes  # fmt: skip


@pytest.mark.thorough
def test_a_masked_graph_is_lowered_without_masks() -> None:
    graph, x = small(), images(4)
    Sparsify(0.6)(graph)
    artifact = lower(graph, find("x86"))
    assert not any("mask" in name for name in stored(artifact))
    assert_close(artifact(x), graph(x))
    assert len(masks(graph)) == 4


def test_quantize_bakes_masks_first() -> None:
    graph = small()
    Sparsify(0.6)(graph)
    apply(Simplify(), graph)
    baked = graph.clone()
    bake(baked)
    quantize = Quantize(find("x86"), [[images(4)]], estimator="minmax")
    assert apply(quantize, graph)[0].what.startswith("mask baked in")
    apply(quantize, baked)
    assert str(graph) == str(baked)
    x = images(4, seed=2)
    assert torch.equal(graph(x), baked(x))


def test_a_dense_model_has_no_note_about_zeros() -> None:
    graph = small()
    result = graphopt.optimize(graph, target="x86", calibration=images(8), measure=False)
    assert not [note for note in result.report.notes if "zero" in note]


# ---- With structured removal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_of_masked_layers_are_found_and_removed(name: str) -> None:
    """As many groups as without masks, and removal gives what it gives when masks are baked in before."""
    masked = small(name)
    plain = groups(masked.clone())
    Sparsify(0.5)(masked)
    baked = masked.clone()
    bake(baked)
    for graph in (masked, baked):
        trace = Trace(graph)
        found = groups(graph, trace)
        assert [(g.name, len(g), len(g.free)) for g in found] == [(g.name, len(g), len(g.free)) for g in plain]
        remove(graph, trace, [(g, g.free[:2].tolist()) for g in found if len(g.free) > 2])
    x = images(4)
    assert_close(masked(x), baked(x))
    assert len(masks(masked)) > 1
    for m in masks(masked):
        assert masked.tensor(m.weight).shape == masked.tensor(m.mask).shape
    bake(masked)
    assert str(masked) == str(baked)


# ---- Mistakes -----------------------------------------------------------------------------------------------------------


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
