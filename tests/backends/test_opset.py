"""Files have the oldest opset in which their operators mean what they do, and targets say which they read."""

from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL, lower
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.targets import CodeGeneration, Runtime, explain, find
from graphopt.utils.errors import InputError

X = torch.randn(2, 3, 8, 8)


class Resized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Normed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, [8, 8])


MODELS = [
    (nn.Conv2d(3, 4, 3), 13, 7),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 14, 7),
    (Normed(), 17, 8),
    (Resized(), 18, 8),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), 20, 9),
]


def written(model: nn.Module, target: Any = "x86") -> onnx.ModelProto:
    artifact = lower(Graph.capture(model.eval(), X), find(target))
    assert torch.allclose(artifact(X), model(X), atol=1e-5)
    return onnx.load(str(artifact.folder / MODEL))


@pytest.mark.parametrize("model, opset, ir_version", MODELS, ids=[str(opset) for _, opset, _ in MODELS])
def test_the_opset_is_the_oldest_that_has_the_operators(model: nn.Module, opset: int, ir_version: int) -> None:
    found = written(model)
    assert ({o.domain: o.version for o in found.opset_import}[""], found.ir_version) == (opset, ir_version)
    own = [node.op_type for node in found.graph.node if not node.domain]
    assert max(13, *(onnx.defs.get_schema(kind, opset, "").since_version for kind in own)) == opset


def test_an_older_opset_has_another_meaning_or_none() -> None:
    found = written(Resized())
    found.opset_import[0].version = 9
    with pytest.raises(Exception, match=r"Resize"):
        ort.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bits, opset", [(8, 13), (16, 21)])
def test_codes_of_16_bits_need_a_newer_one(bits: int, opset: int) -> None:
    target = find("hexagon").replace(activations=Format(bits, signed=False, symmetric=False))
    quick: dict[str, Any] = {"calibration": [X], "measure": False, "passes": None}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    artifact = graphopt.optimize(model, X, target=target, **quick).artifact
    model_file = onnx.load(str(artifact.folder / MODEL))
    assert model_file.opset_import[0].version == opset
    old = target.replace(opset=20)
    if bits == 16:
        with pytest.raises(
            InputError, match=r"reads ONNX up to opset 20, and the graph needs opset 21: .*QuantizeLinear, opset"
        ):
            graphopt.optimize(model, X, target=old, **quick)
        found = [v for v in graphopt.check(artifact, old) if v.rule == "opset"]
        assert [v.what for v in found] == ["opset 21, and 'hexagon' reads 20 at most"]
    else:
        assert graphopt.optimize(model, X, target=old, **quick).artifact.manifest.target["runtime"]["opset"] == 20
        assert not [v for v in graphopt.check(artifact, old) if v.rule == "opset"]


def test_a_runtime_of_a_device_is_held_to_what_it_reads() -> None:
    with pytest.raises(InputError, match=r"up to opset 17, and the graph needs opset 20: .*Gelu, opset 20"):
        written(MODELS[-1][0], find("arm").replace(opset=17))
    assert written(MODELS[1][0], find("arm").replace(opset=17)).opset_import[0].version == 14


def test_targets_declare_it() -> None:
    assert find("nvidia").runtime.opset == 20
    assert ("opset", "the oldest that holds the graph, 20 at most") in list(explain(find("nvidia")))
    assert "opset" not in dict(explain(find("arm")))
    with pytest.raises(InputError, match="the runtime 'tvm' reads no ONNX; leave out opset=17"):
        Runtime("tvm", "aarch64", code=CodeGeneration(), opset=17)
    with pytest.raises(InputError, match="opset must be a version of ONNX's operators, 7 or later, got '17'"):
        Runtime("onnxruntime", "aarch64", opset="17")  # type: ignore[arg-type]
