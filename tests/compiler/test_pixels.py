"""`optimize(..., input="uint8")`: the bytes of a camera go in, and what they are normalized by is in the first layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt import Preprocessing
from graphopt.artifacts.artifact import Artifact
from graphopt.ir.cost import sqnr
from graphopt.utils.errors import InputError

IMAGES = Preprocessing(crop=(32, 32))
X = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(size: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, size, 2, size // 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def normal(x: Tensor) -> Tensor:
    return torch.from_numpy(IMAGES.normalized(x.permute(0, 2, 3, 1).numpy()))


def optimized(model: nn.Module, target: str = "x86", **options: Any) -> Any:
    given = {"calibration": [X], "preprocessing": IMAGES, "input": "uint8", "measure": False, **options}
    return graphopt.optimize(model, X[:1], target=target, **given)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86"])
def test_pixels_go_in(target: str, size: int, tmp_path: Path) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm")
    model = network(size)
    artifact, report, graph = optimized(model, target)
    with torch.no_grad():
        assert sqnr([model(normal(X))], [artifact(X)]) > 35
    assert torch.equal(graphopt.simulate(graph, target)(X), artifact(X))
    assert not report.float_operators
    assert [(each.dtype, each.shape) for each in artifact.manifest.inputs] == [("uint8", (None, 3, 32, 32))]
    artifact.save(tmp_path / "deployed")
    again = graphopt.load(tmp_path / "deployed")
    assert torch.equal(again(X), artifact(X))
    photo = _photo(tmp_path)
    assert again.preprocessing.raw
    assert again(again.preprocessing(photo)).shape == (1, 5)


def _photo(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    path = folder / "photo.png"
    image.fromarray(X[0].permute(1, 2, 0).numpy()).save(path)
    return path


def test_on_x86_the_first_layer_reads_bytes() -> None:
    artifact: Artifact = optimized(network()).artifact
    operators = [node.op_type for node in onnx.load(artifact.folder / "model.onnx").graph.node]
    assert operators.index("Conv") < operators.index("QuantizeLinear")
    assert not {"Cast", "Sub", "Div", "Mul"} & set(operators)


def test_photos_among_the_calibration_data_are_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    _photo(folder)
    report = optimized(network(), calibration=str(folder)).report
    assert any("1 calibration sample" in note for note in report.notes)


def test_an_example_in_float_is_of_normalized_images() -> None:
    model = network()
    given: dict[str, Any] = {"calibration": [X], "preprocessing": IMAGES, "input": "uint8", "measure": False}
    graph = graphopt.optimize(model, normal(X[:2]), target="x86", **given).graph
    assert torch.equal(graph.example.tensors()[0], X[:2])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="needs preprocessing"):
        optimized(network(), preprocessing=None)
    with pytest.raises(InputError, match=r"input is 'uint8', or None"):
        optimized(network(), input="int8")
    for images in ([normal(X)], normal(X)):
        with pytest.raises(
            InputError, match=r"looks like normalized images; give pixels from 0 to 255, in uint8, before"
        ):
            optimized(network(), calibration=images)
    with pytest.raises(InputError, match=r"convert it with .to\(torch.uint8\)"):
        optimized(network(), calibration=[X.float()])

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(InputError, match="takes an image and nothing else"):
        graphopt.optimize(Two().eval(), (X, X), target="x86", preprocessing=IMAGES, input="uint8", measure=False)


class Scales(nn.Module):
    """A model that takes pixels and normalizes them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float() / 255)


def test_pixels_are_not_scaled_twice() -> None:
    model = Scales().eval()
    with pytest.raises(
        InputError, match=r"0\.018 apart in front of layer 'inner\.0': preprocessing scales them, and the model"
    ):
        optimized(model)
    raw = Preprocessing(crop=(32, 32), scale=1, mean=(0,), std=(1,))
    for options in ({"preprocessing": raw}, {"preprocessing": None, "input": None}):
        artifact = optimized(model, **options).artifact
        with torch.no_grad():
            assert sqnr([model(X)], [artifact(X)]) > 35
