"""Layers whose weights, and inputs, are signs: which layers, what they compute, and that every runtime computes it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import images
from rewriting import apply, capture, randomised
from torch import Tensor, nn

import graphopt
from graphopt.formats import Binary, Format, Ternary
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import bias_quantizer, is_signs, is_uniform, quantizer_of, scale_of
from graphopt.passes.binary import Binarize, BlockShortcuts
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantization import Quantize
from graphopt.targets import find, machine_here
from graphopt.utils.errors import InputError


class Block(nn.Module):
    """Convolution, a residual block with a 1x1 shortcut, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.two(F.relu(self.norm(self.one(x))))
        return self.last(F.relu(self.shortcut(x) + y).mean((2, 3)))


def quantized(target: str = "x86") -> Graph:
    graph = capture(randomised(Block()), images(2))
    apply(FoldBatchNorm(), graph)
    apply(Quantize(find(target), [[images(16)]], estimator="minmax"), graph)
    return graph


def layers(graph: Graph) -> dict[str, Layer]:
    return {graph.site(node): layer for node in graph.calls() if (layer := Layer.of(node))}


def test_the_layers_inside_get_signs_and_the_ends_and_shortcuts_keep_their_bits() -> None:
    graph = quantized()
    changes = apply(Binarize(), graph)
    assert [change.site for change in changes] == ["one", "two"]
    assert {name: is_signs(layer.weight) for name, layer in layers(graph).items()} == {
        "stem": False, "one": True, "two": True, "shortcut": False, "last": False,
    }  # fmt: skip
    assert apply(Binarize(), graph) == []


def test_options_take_the_ends_in_and_leave_layers_out() -> None:
    changes = apply(Binarize(first=True, last=True, shortcuts=True, leave=("tw?",)), quantized())
    assert sorted(change.site for change in changes) == ["last", "one", "shortcut", "stem"]


def test_a_layer_multiplies_signs_and_its_bias_lies_on_the_grid_of_their_sums() -> None:
    graph = quantized()
    weights = {name: graph.tensor(layer.weight.args[0]) for name, layer in layers(graph).items()}
    apply(Binarize(activations=Binary(), calibration=[[images(8)]]), graph)
    for name in ("one", "two"):
        layer = layers(graph)[name]
        bias = bias_quantizer(layer)
        x, w = scale_of(layer.input), scale_of(layer.weight)
        assert bias is not None
        assert torch.equal(graph.tensor(bias.scale), graph.tensor(x) * graph.tensor(w))
        alpha = weights[name].abs().flatten(1).mean(1)
        wanted = torch.where(weights[name] >= 0, 1.0, -1.0) * alpha[:, None, None, None]
        torch.testing.assert_close(graph.tensor(layer.weight), wanted)


def test_only_the_layer_reads_signs_and_one_rounding_serves_all_readers() -> None:
    graph = quantized()
    apply(Binarize(activations=Binary(), calibration=[[images(8)]], shortcuts=True), graph)
    read = layers(graph)
    assert read["one"].input is read["shortcut"].input
    assert is_signs(read["one"].input)
    assert is_uniform(read["one"].input.args[0])


@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": Ternary(per_channel=True)},
        {"weights": Ternary(two_scales=True, per_channel=True), "activations": Binary()},
        {"weights": Binary(), "activations": Ternary()},
    ],
    ids=["binary", "ternary", "two scales x binary", "binary x ternary"],
)
def test_integers_answer_what_the_graph_answers(target: str, options: dict[str, Any]) -> None:
    """But for values in the middle between two codes, which float sums may put on either side."""
    graph = quantized(target)
    apply(Binarize(**options, calibration=[[images(8)]]), graph)
    x = images(8, seed=5)
    simulation = graphopt.simulate(graph, target)
    assert all(kernel != "conv2d" for kernel in map(str, (n.target for n in simulation._graph.calls())))
    with torch.no_grad():
        torch.testing.assert_close(simulation(x), graph(x), rtol=0, atol=0.05 * float(graph(x).abs().max()))


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
def test_artifacts_compute_the_simulations_integers(target: str) -> None:
    graph = quantized(target)
    apply(Binarize(activations=Binary(), calibration=[[images(8)]]), graph)
    lower = importlib.import_module(f"graphopt.backends.{find(target).runtime.name}").lower
    machine = None if target.startswith("tvm") else machine_here()
    artifact, simulation = lower(graph, find(target)), graphopt.simulate(graph, target, machine=machine)
    x = images(2, seed=6)
    assert simulation.codes(x)
    assert [m for m in simulation.mismatches(artifact, x) if m.differing] == []
    assert torch.equal(torch.as_tensor(artifact(x)), simulation(x))


def test_quantize_itself_takes_signs_for_weights() -> None:
    graph = capture(randomised(Block()), images(2))
    apply(FoldBatchNorm(), graph)
    apply(Quantize(find("x86"), [[images(16)]], weights=Ternary(per_channel=True), estimator="minmax"), graph)
    assert all(
        quantizer_of(graph, layer.weight).format == Ternary(per_channel=True) for layer in layers(graph).values()
    )
    x = images(4, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(
            graphopt.simulate(graph, "x86")(x), graph(x), rtol=0, atol=0.05 * float(graph(x).abs().max())
        )


def test_a_float_graph_may_have_signs_too() -> None:
    graph = capture(randomised(Block()), images(2))
    apply(Binarize(), graph)
    assert is_signs(layers(graph)["two"].weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": Format(8)}, "weights of Binarize are Binary or Ternary, not s8"),
        ({"activations": Binary()}, "give calibration="),
        ({"estimator": "entropy"}, "estimator must be 'minmax' or 'mse'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Binarize(**options)


def test_patterns_that_match_nothing_and_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="'head' of leave matches no layer; layers are named like stem, one"):
        apply(Binarize(leave=("head",)), quantized())
    graph = capture(randomised(Block()), images(2))
    graph.parameter(layers(graph)["two"].weight).data[0] = float("nan")
    with pytest.raises(InputError, match="contains NaN"):
        Binarize()(graph)
    with pytest.raises(InputError, match="calibration data are empty"):
        Binarize(activations=Binary(), calibration=[])(quantized())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.n1, self.n2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.n2(self.two(F.relu(self.n1(self.one(x)))))
        return self.last(F.relu(y + x).mean((2, 3)))


@pytest.mark.parametrize("activation", ["hardtanh", "prelu", "relu"])
def test_each_convolution_of_a_block_has_a_shortcut(activation: str) -> None:
    model = randomised(Residual()).eval()
    graph = capture(model, images(2))
    changes = BlockShortcuts(activation)(graph)
    assert [change.what for change in changes] == ["a shortcut around each convolution"]
    a = {"hardtanh": F.hardtanh, "relu": F.relu, "prelu": lambda x: F.prelu(x, torch.full((8,), 0.25))}[activation]
    x = images(2, seed=4)
    with torch.no_grad():
        h = a(model.stem(x))
        first = a(model.n1(model.one(h)) + h)
        second = a(model.n2(model.two(first)) + first)
        torch.testing.assert_close(graph(x), model.last(second.mean((2, 3))))
    with pytest.raises(InputError, match="activation must be"):
        BlockShortcuts("gelu")


def test_blocks_in_a_row_whose_shortcuts_are_computed_last() -> None:
    """As networks write them: the shortcut, a convolution or a slice with a pad, stands behind the block."""

    class Behind(nn.Module):
        def __init__(self, stride: int, out: int) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, out, 3, stride, 1), nn.Conv2d(out, out, 3, padding=1)
            self.short = nn.Conv2d(8, out, 1, stride) if out == 8 else None

        def around(self, x: Tensor) -> Tensor:
            return self.short(x) if self.short else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.two(F.relu(self.one(x)))
            return F.relu(y + self.around(x))

    torch.manual_seed(0)
    stem, blocks = nn.Conv2d(3, 8, 3, padding=1), [Behind(1, 8), Behind(1, 8), Behind(2, 16)]
    graph = capture(nn.Sequential(stem, nn.ReLU(), *blocks), images(2))
    assert len(BlockShortcuts()(graph)) == 3
    x = images(2, seed=4)
    with torch.no_grad():
        wanted = F.hardtanh(stem(x))
        for block in blocks:
            first = F.hardtanh(block.one(wanted) + block.around(wanted))
            wanted = F.hardtanh(block.two(first) + first)
        torch.testing.assert_close(graph(x), wanted)
    assert BlockShortcuts()(graph) == []


def test_a_network_without_blocks_is_left_alone() -> None:
    assert BlockShortcuts()(capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), images(2))) == []
