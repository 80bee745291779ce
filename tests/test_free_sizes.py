"""Networks with free sizes, optimized as a user does: artifact, simulation and model agree on sizes not seen before."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from rewriting import randomised
from torch import Tensor, nn
from torch.export import Dim
from typer.testing import CliRunner

import graphopt
from graphopt.cli.main import app
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError

SAFE = 0.4  # weights so small that no pairs of 8-bit products saturate where VNNI is missing


class Images(nn.Module):
    """Halved, doubled, joined; one answer for every pixel and one for the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.last = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.first(x)).relu()
        up = F.interpolate(self.down(y).relu(), scale_factor=2.0)
        z = self.last(torch.cat([y, up], 1)).relu()
        return z, self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 8, 9, stride=4, padding=4), nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean(-1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Two sequences of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.softmax(self.query(a) @ self.key(b).transpose(1, 2), -1) @ b + a


def safe(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in randomised(model).parameters():
            parameter.clamp_(-SAFE, SAFE)
    return model.eval()


def images() -> tuple[nn.Module, Any, Any, list[Any]]:
    sizes = [(2, 32, 48), (1, 16, 32), (3, 40, 24), (1, 20, 28), (3, 64, 32), (1, 4, 8)]
    return safe(Images()), ({2: "height", 3: "width"},), torch.randn(2, 3, 32, 32), [
        (torch.randn(n, 3, h, w),) for n, h, w in sizes
    ]  # fmt: skip


def audio() -> tuple[nn.Module, Any, Any, list[Any]]:
    sizes = [(2, 64), (4, 128), (3, 90), (1, 33), (3, 700), (2, 5)]
    return safe(Audio()), {"x": {2: "length"}}, torch.randn(2, 1, 64), [(torch.randn(n, 1, t),) for n, t in sizes]


def attention() -> tuple[nn.Module, Any, Any, list[Any]]:
    sizes = [(2, 7), (2, 9), (1, 4), (2, 5), (3, 30), (1, 1)]
    pairs = [(torch.randn(n, t, 8), torch.randn(n, t, 8)) for n, t in sizes]
    return safe(Attention()), {"a": {1: "time"}, "b": {1: "time"}}, pairs[0], pairs


def close(found: Any, expected: Any, within: float) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= within * max(1e-3, float(b.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("made", [images, audio, attention])
def test_sizes_that_were_never_seen_are_computed_bit_for_bit(
    made: Callable[[], tuple[nn.Module, Any, Any, list[Any]]], target: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, shapes, example, batches = made()
    done = graphopt.optimize(
        model, example, target=target, calibration=batches[:3], dynamic_shapes=shapes, measure=False
    )
    simulation = graphopt.simulate(done.graph, target, machine=machine_here())
    loaded = graphopt.load(done.artifact.save(tmp_path / "model"))
    for batch in batches[3:]:
        answer = done.artifact(*batch)
        assert not [m for m in simulation.mismatches(done.artifact, *batch) if m.differing]
        close(answer, simulation(*batch), 1e-6)
        close(answer, model(*batch), 0.15)
        close(loaded(*batch), answer, 0)


@pytest.mark.slow
def test_float_exports_take_other_sizes_and_name_them() -> None:
    model, shapes, example, batches = images()
    done = graphopt.optimize(model, example, target="x86", dynamic_shapes=shapes, passes=[], measure=False)
    for batch in batches:
        close(done.artifact(*batch), model(*batch), 1e-5)
    (file,) = done.artifact.folder.glob("*.onnx")
    graph = onnx.load(file).graph
    sizes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (graph.input[0], *graph.output)
    ]
    assert sizes == [["batch", 3, "height", "width"], ["batch", 4, "height", "width"], ["batch", 5]]
    assert str(done.artifact.manifest.inputs[0]) == "x: float32[batch, 3, height, width]"
    with pytest.raises(
        InputError, match="dimension 2 of input 'x' is 7, but 'height' goes from 2 upwards in steps of 2"
    ):
        done.artifact(torch.randn(1, 3, 7, 8))


@pytest.mark.slow
def test_a_small_transformer_has_a_free_batch_and_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = safe(transformers.BertModel(config))

    def inputs(batch: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(50, (batch, length))
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(length) < max(1, length - 2)).long().expand(batch, -1),
        }

    shapes = {name: {0: "batch", 1: "sequence"} for name in inputs(1, 1)}
    done = graphopt.optimize(
        model, inputs(2, 16), target="arm", calibration=[inputs(2, 16), inputs(3, 20), inputs(1, 9)],
        dynamic_shapes=shapes, measure=False,
    )  # fmt: skip
    simulation = graphopt.simulate(done.graph, "arm", machine=machine_here())
    for batch, length in ((1, 5), (3, 64), (1, 1)):
        given = inputs(batch, length)
        assert not [m for m in simulation.mismatches(done.artifact, **given) if m.differing]
        close(done.artifact(**given), model(**given), 0.3)
    with pytest.raises(InputError, match="dimension 1 of input 'input_ids' is 65, but 'sequence' goes from 1 to 64"):
        done.artifact(**inputs(1, 65))


def plain() -> nn.Module:
    return safe(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)))


def program() -> torch.export.ExportedProgram:
    sizes = {0: Dim("n", min=1, max=64), 2: Dim("h", min=8, max=512), 3: 2 * Dim("w", min=4, max=100)}
    return torch.export.export(plain(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=(sizes,))


@pytest.mark.slow
def test_the_command_line_keeps_sizes_that_a_file_declares_free(tmp_path: Path) -> None:
    torch.export.save(program(), tmp_path / "free.pt2")
    arguments = ["optimize", str(tmp_path / "free.pt2"), "--target", "x86", "--no-measure", "-o", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    artifact = graphopt.load(tmp_path / "out")
    assert artifact(torch.randn(1, 3, 33, 40)).shape == (1, 4, 33, 40)
    for shape, wrong in (
        ((65, 3, 16, 16), "dimension 0"),
        ((1, 3, 7, 16), "dimension 2"),
        ((1, 3, 8, 17), "dimension 3"),
    ):
        with pytest.raises(InputError, match=wrong):
            artifact(torch.randn(shape))


@pytest.mark.slow
def test_the_command_line_frees_sizes_by_name(tmp_path: Path) -> None:
    fixed = torch.export.export(plain(), (torch.randn(2, 3, 16, 16),))
    torch.export.save(fixed, tmp_path / "fixed.pt2")
    arguments = [
        "optimize",
        str(tmp_path / "fixed.pt2"),
        "--target",
        "arm",
        "--no-measure",
        "-o",
        str(tmp_path / "out"),
    ]
    ran = CliRunner().invoke(app, [*arguments, "--dynamic-shape", "input:2=height,3=width"])
    assert ran.exit_code == 0, ran.output
    assert graphopt.load(tmp_path / "out")(torch.randn(1, 3, 9, 21)).shape == (1, 4, 9, 21)
    ran = CliRunner().invoke(app, [*arguments, "--dynamic-shape", "height"])
    assert ran.exit_code != 0
    assert "not of the form image:2=height,3=width" in ran.output


@pytest.mark.parametrize(
    ("target", "reason"), [("tvm-x86", "TVM kernels are made for one shape"), ("hexagon", "fixed sizes alone")]
)
def test_targets_of_fixed_sizes_refuse_free_ones_by_name(target: str, reason: str) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm")
    x = torch.randn(2, 3, 16, 16)
    for model, shapes in ((plain(), ({3: "width"},)), (program(), None)):
        with pytest.raises(
            InputError, match=rf"dimension [23] of input 'input' \('\w+'\) is.*{reason}.*dynamic_shapes"
        ):
            graphopt.optimize(model, x, target=target, calibration=x, dynamic_shapes=shapes, measure=False)


def test_a_captured_graph_takes_no_declarations() -> None:
    graph = Graph.capture(plain(), torch.randn(2, 3, 16, 16))
    with pytest.raises(InputError, match=r"captured already: give it to Graph\.capture"):
        graphopt.optimize(graph, target="arm", dynamic_shapes=({2: "height"},))


def test_calibration_data_of_sizes_that_are_not_taken_are_named() -> None:
    x = torch.randn(2, 3, 16, 16)
    wrong = [x, torch.randn(2, 3, 700, 16)]
    with pytest.raises(
        InputError, match=r"batch 2 of the calibration data does not fit.* is 700, but 'h' goes from 1 to 512"
    ):
        graphopt.optimize(
            plain(), x, target="arm", calibration=wrong, dynamic_shapes=({2: Dim("h", max=512)},), measure=False
        )


@pytest.mark.slow
def test_the_documented_example_answers_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs/guides/dynamic-shapes.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    promised = re.findall(r"print\(.*\)  # (.*)", code)
    exec(compile(code, "docs/guides/dynamic-shapes.md", "exec"), {})
    assert len(promised) == 2
    assert capsys.readouterr().out.splitlines() == promised
