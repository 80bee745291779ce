"""The ONNX file itself: its names, its types, what stands in it, and what cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from against_torch import captured, spread, taken
from operators import OPERATORS
from rewriting import Model, assert_close, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import OnnxRuntimeArtifact, emit, lower
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.targets import find
from graphopt.utils.errors import GraphoptError, InputError

X86 = find("x86")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))) + x)  # type: ignore[no-any-return]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def file_of(artifact: OnnxRuntimeArtifact) -> onnx.ModelProto:
    return onnx.load(str(artifact.folder / MODEL))


def optimized(model: nn.Module, x: Tensor) -> Any:
    return graphopt.optimize(model, x, target="arm", calibration=[x, x * 0.5], measure=False)


def test_a_float_file_has_the_names_of_modules_and_parameters() -> None:
    model = network()
    written = file_of(lower(Graph.capture(model, torch.randn(1, 3, 8, 8)), X86))
    assert [node.name for node in written.graph.node] == [
        "0", "1.conv1", "1.act.relu", "1.conv2", "1.add", "1.act.relu_1", "2", "3", "4",
    ]  # fmt: skip
    names = {tensor.name for tensor in written.graph.initializer if not tensor.name.startswith("constant")}
    assert names == set(model.state_dict())
    assert written.producer_name == "graphopt"
    assert written.producer_version == graphopt.__version__
    metadata = {p.key: p.value for p in written.metadata_props}
    assert json.loads(metadata.pop("versions"))["graphopt"] == graphopt.__version__
    assert metadata == {"target": "x86", "model": "model"}


def test_codes_in_a_file_have_the_names_that_the_simulation_gives_them() -> None:
    x = torch.randn(2, 3, 8, 8)
    done = optimized(network(), x)
    outputs = {name for node in file_of(done.artifact).graph.node for name in node.output}
    codes = graphopt.simulate(done.graph, "arm").codes(x)
    assert set(codes) <= outputs
    assert {"input.quantize", "0.quantize", "1.conv1.quantize", "1.add.quantize"} <= set(codes)
    assert {"1.conv1.weight", "1.conv1.bias", "4.weight"} <= outputs


def test_modules_called_like_an_output_or_a_parameter_do_not_clash() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output, self.weight = nn.Linear(3, 3), nn.ReLU()
            self.constant = nn.Sigmoid()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.constant(self.output(x))
            return self.weight(hidden) + 1, hidden

    model, x = Named().eval(), torch.randn(2, 3)
    for target in ("x86", "arm"):
        answers = lower(Graph.capture(model, x), find(target))(x)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(answers, model(x), strict=True))


@pytest.mark.thorough
def test_the_same_graph_is_written_byte_for_byte_the_same() -> None:
    graph = optimized(network(), torch.randn(2, 3, 8, 8)).graph
    artifacts = [lower(g, find("arm")) for g in (graph, graph.clone())]
    first, second = ((artifact.folder / MODEL).read_bytes() for artifact in artifacts)
    assert first == second


@pytest.mark.parametrize("kind", OPERATORS)
def test_types_and_shapes_in_files_are_those_that_onnx_derives(kind: str, tmp_path: Path) -> None:
    refused = {"statistics": {10: ""}, "recurrent layers": {2: ""}}
    artifact = lower(captured(spread(taken(kind, refused), 5)), X86)
    onnx.checker.check_model(str(artifact.folder / MODEL), full_check=True)


@pytest.mark.thorough
def test_a_call_without_a_rule_is_written_by_torchs_exporter_and_the_report_names_it() -> None:
    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cosine_similarity(self.first(x), self.second(x), dim=1)

    model, x = Distance().eval(), torch.randn(3, 6)
    assert aten.cosine_similarity.default not in emit.RULES
    done = optimized(model, x)
    assert done.artifact.manifest.options["exported"] == ["cosine_similarity (aten.cosine_similarity.default)"]
    (note,) = [n for n in done.report.notes if "exporter" in n]
    assert "cosine_similarity" in note
    float_answer = lower(Graph.capture(model, x), X86)(torch.cat([x, x, x]))
    assert torch.allclose(float_answer, model(torch.cat([x, x, x])), atol=1e-6)


def test_what_a_rule_overlooks_is_an_error_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emit.RULES, aten.leaky_relu.default, lambda w, a: w.op("LeakyRelu", w.read(a["self"])))
    graph = capture(
        Model(lambda m, x: nn.functional.leaky_relu(m.inner(x), 0.3), inner=nn.Linear(3, 3)), torch.randn(2, 3)
    )
    with pytest.raises(InputError, match=r"leaky_relu\.default with negative_slope=0\.3"):
        lower(graph, X86)


def test_a_rule_that_fails_is_reported_with_operator_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(writer: Any, arguments: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(emit.RULES, aten.relu.default, broken)
    with pytest.raises(
        GraphoptError, match=r"written as ONNX: 1\.act: aten\.relu\.default: no such thing; compute it with"
    ):
        lower(Graph.capture(network(), torch.randn(1, 3, 8, 8)), X86)


SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "views": lambda x: x.view(x.shape[0] * x.shape[1], -1).unflatten(0, (x.shape[0], -1)).flatten(1),
    "ranges": lambda x: x + torch.arange(x.shape[1]).unsqueeze(-1) * torch.ones(x.shape[0], 1, 1),
    "parts": lambda x: torch.cat([x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :].flip(1)], 1),
    "statistics": lambda x: [x.var((0, 2)), *torch.std_mean(x, 1), x.mean()],
    "copies": lambda x: [
        x[:, :1].expand(-1, x.shape[1], -1),
        x.repeat(2, 1, 1),
        torch.zeros_like(x),
        x.repeat_interleave(3, 1),
    ],
    "orders": lambda x: [x.sort(1, descending=True)[0], x.cumsum(1), x.topk(2, 2)[1], x.argmax(1)],
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "sizes": lambda x: x * x.shape[1] - x.shape[0] % 3,
    "places": lambda x: [
        x[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1]) - 1],  # negative ones count from the end
        x[:, torch.arange(x.shape[1])[:, None], torch.tensor([0, -1])],
        x[torch.arange(x.shape[0]) // 2, :, torch.tensor([1])],
        (x[..., 0] > 0)[torch.arange(x.shape[0])[:, None, None, None], torch.arange(x.shape[1])],
    ],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_free_sizes_stay_free(kind: str) -> None:
    model = Model(lambda m, x: SHAPES[kind](m.inner(x)), inner=nn.Linear(6, 6))
    graph = Graph.capture(model.eval(), torch.randn(2, 4, 6), dynamic_shapes={"inputs_0": {0: "batch", 1: "length"}})
    artifact = lower(graph, X86)
    assert not artifact.manifest.options["exported"]
    for batch, length in ((1, 2), (2, 4), (5, 9)):
        x = torch.randn(batch, length, 6)
        ours, theirs = (torch.utils._pytree.tree_leaves(answer) for answer in (artifact(x), model(x)))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


SPLITS: dict[str, Any] = {
    "sections": lambda x: x.tensor_split(4),
    "indices": lambda x: x.tensor_split((1, -2)),
    "chunks": lambda x: x.chunk(2),
    "sections of a fixed size": lambda x: x.tensor_split(4, 1),
    "indices of a fixed size": lambda x: x.tensor_split((2, -1), 1),
    "falling indices": lambda x: x.tensor_split((4, 2)),
    "falling indices of a fixed size": lambda x: x.tensor_split((4, -5, 2, 9), 1),
    "an index that is computed": lambda x: x.tensor_split((x.shape[0] // 2,)),
    "a length that is computed": lambda x: x.split((x.shape[0] + 2) // 3 * 2),
    "lengths that are computed": lambda x: x.split([x.shape[0] // 2, x.shape[0] - x.shape[0] // 2]),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_parts_of_a_free_size_are_as_long_as_torchs(kind: str) -> None:
    model = Model(lambda m, x: SPLITS[kind](m.inner(x)), inner=nn.Linear(6, 6)).eval()
    artifact = lower(Graph.capture(model, torch.randn(7, 6), dynamic_batch=True), X86)
    assert not artifact.manifest.options["exported"]
    for batch in (7, 8, 9, 12, 14):
        x = torch.randn(batch, 6)
        with torch.no_grad():
            assert_close(artifact(x), model(x))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers, both, first", [(1, False, True), (3, True, False)])
def test_recurrent_layers_take_any_batch(kind: Any, layers: int, both: bool, first: bool) -> None:
    torch.manual_seed(0)
    model = Model(lambda m, x: m.inner(x), inner=kind(6, 5, layers, bidirectional=both, batch_first=first)).eval()
    graph = Graph.capture(model, torch.randn(2, 4, 6), dynamic_shapes={"inputs_0": {0 if first else 1: "batch"}})
    artifact = lower(graph, X86)
    assert not artifact.manifest.options["exported"]
    for batch in (1, 3):
        x = torch.randn(batch, 4, 6) if first else torch.randn(2, batch, 6)
        ours, theirs = (torch.utils._pytree.tree_leaves(answer) for answer in (artifact(x), model(x)))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


class Normalized(nn.Module):
    """A residual in front of a normalization, a plain sum, and attention under a mask of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.first(x).unflatten(-1, (2, 8)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads, mask[:, None, None] > 0)
        y = self.norm(x + attended.transpose(1, 2).flatten(2))
        return y + self.second(y)


def normalized(passes: Any = ()) -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, inputs = Normalized().eval(), (torch.randn(3, 6, 16), torch.tensor([[1] * 6, [1, 0] * 3, [0] * 6]))
    free = {"x": {1: "length"}, "mask": {1: "length"}}
    done = graphopt.optimize(
        model, inputs, target="x86-avx2", calibration=[inputs], dynamic_shapes=free, passes=passes, measure=False
    )
    return model, done, inputs


@pytest.mark.parametrize("passes", [[], None], ids=["float", "int8"])
def test_sizes_are_read_from_inputs_alone(passes: Any) -> None:
    _, done, _ = normalized(passes)
    graph = file_of(done.artifact).graph
    assert {node.input[0] for node in graph.node if node.op_type == "Shape"} <= {"x", "mask"}


@pytest.mark.thorough
def test_residuals_are_not_fused_with_normalizations_into_the_slower_kernel(tmp_path: Path) -> None:
    model, done, inputs = normalized([])
    kinds = [node.op_type for node in optimized_by_runtime(done.artifact.folder / MODEL, tmp_path).node]
    assert "SkipLayerNormalization" not in kinds
    assert (kinds.count("Sum"), kinds.count("LayerNormalization")) == (1, 1)
    with torch.no_grad():
        torch.testing.assert_close(done.artifact(*inputs), model(*inputs), rtol=0, atol=1e-5)


def test_a_number_beside_float64_is_a_float64() -> None:
    model, x = Model(lambda m, x: (x.double() * 0.1 + 0.3).clamp(0.1, 0.7)), torch.randn(2, 5)
    assert torch.equal(lower(capture(model, x), X86)(x), model(x))


def test_vendors_get_plain_additions() -> None:
    model, x = nn.Sequential(Residual()).eval(), torch.randn(2, 5, 8)
    for target, kind in (("x86", "Sum"), ("hexagon", "Add")):
        written = file_of(lower(Graph.capture(model, x, dynamic_batch=False), find(target)))
        assert [n.op_type for n in written.graph.node if n.op_type in ("Add", "Sum")] == [kind]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + x.sin())


@pytest.mark.thorough
def test_attention_under_a_mask_looks_for_no_nan_and_answers_zero_where_nothing_is_allowed() -> None:
    model, done, inputs = normalized([])
    assert "IsNaN" not in {node.op_type for node in file_of(done.artifact).graph.node}
    with torch.no_grad():
        found, expected = done.artifact(*inputs), model(*inputs)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def optimized_by_runtime(path: Path, folder: Path) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx").graph


@pytest.mark.parametrize("slopes", [[0.25], [0.1, 0.9, 1.0, 0.5], [0.0, -0.3, 1.7, 0.2]])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 6)])
def test_slopes_of_prelu_are_two_operators_or_four_and_exact(slopes: list[float], shape: tuple[int, ...]) -> None:
    """Max(x, a x) for slopes from 0 to 1, else Max(x, 0) + a Min(x, 0); PRelu itself takes ten times as long."""
    layer = nn.PReLU(len(slopes))
    layer.weight.data = torch.tensor(slopes)
    x = torch.randn(shape) * 3
    x.flatten()[:2] = torch.tensor([torch.inf, -0.0])
    artifact = lower(Graph.capture(layer.eval(), x), X86)
    assert torch.equal(artifact(x), layer(x))
    kinds = [node.op_type for node in onnx.load(str(artifact.folder / "model.onnx")).graph.node]
    assert sorted(kinds) == (["Max", "Mul"] if min(slopes) > 0 else ["Add", "Max", "Min", "Mul"])
