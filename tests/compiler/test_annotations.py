"""What a deployed model says of its input and its classes: from the caller, from the model, in every file."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphopt
from graphopt import Preprocessing
from graphopt.data.loaders import Named
from graphopt.ir.graph import Graph
from graphopt.targets import find
from graphopt.utils.errors import InputError

LABELS = ["cat", "dog", "a 'bird'", "\u00e9tang\n"]
GIVEN = Preprocessing(20, mean=(0.5,), std=(0.25,), color="BGR")
EXAMPLE = torch.rand(2, 3, 16, 12)


def network(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    return nn.Sequential(*layers).eval()


@cache
def captured(dynamic_batch: bool) -> Graph:
    """`network`, as `optimize` would capture it; it leaves the graph as it is."""
    return Graph.capture(network(), EXAMPLE, dynamic_batch=dynamic_batch)


def optimized(model: Any = None, example: Any = EXAMPLE, **options: Any) -> Any:
    quick = {"target": "x86-avx2", "calibration": [example], "measure": False, **options}
    if model is None:
        model = captured(not find(quick["target"]).runtime.static_shapes)
    return graphopt.optimize(model, example, **quick).artifact


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photos")
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (30, 40 + n, 3)).astype("uint8")
        image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@pytest.mark.parametrize("target", ["x86-avx2", "hexagon", "nnie", "tvm-x86", "executorch"])
def test_artifacts_of_every_runtime_give_back_what_they_were_told(target: str, photos: Path, tmp_path: Path) -> None:
    if (runtime := find(target).runtime.name) in ("tvm", "executorch"):
        pytest.importorskip(runtime)
    artifact = optimized(target=target, calibration=photos, preprocessing=GIVEN, class_labels=LABELS)
    loaded = graphopt.load(artifact.save(tmp_path / "deployed"))
    wanted = GIVEN.fitted((None, 3, 16, 12), "float32")
    assert loaded.preprocessing == artifact.preprocessing == wanted
    assert loaded.labels == LABELS
    if (tmp_path / "deployed" / "model.onnx").exists():
        model = onnx.load(str(tmp_path / "deployed" / "model.onnx"))
        onnx.checker.check_model(model)
        found = {p.key: p.value for p in model.metadata_props}
        assert len(found) == len(model.metadata_props)
        assert json.loads(found["class_labels"]) == LABELS
        assert Preprocessing.from_dict(json.loads(found["preprocessing"])) == wanted
        assert (found["target"], found["Image.BitmapPixelFormat"]) == (target, "Bgr8")
        assert json.loads(found["versions"])["graphopt"] == graphopt.__version__
        assert "Image.NominalPixelRange" not in found


@pytest.mark.parametrize("fields, name", [
    ({"mean": 0.5, "std": 0.5}, "Normalized_1_1"),
    ({"mean": 0, "std": 1}, "Normalized_0_1"),
    ({"scale": 1, "mean": (0, 0, 0), "std": 1}, "NominalRange_0_255"),
])  # fmt: skip
def test_ranges_that_onnx_has_names_for_have_them(fields: Any, name: str) -> None:
    artifact = optimized(preprocessing=Preprocessing(**fields))
    found = {p.key: p.value for p in onnx.load(str(artifact.folder / "model.onnx")).metadata_props}
    assert found["Image.NominalPixelRange"] == name


@pytest.mark.thorough
def test_photos_are_read_by_what_the_artifact_carries(photos: Path) -> None:
    told = optimized(calibration=photos, preprocessing=GIVEN)
    batch = torch.cat([torch.from_numpy(told.preprocessing(photos / f"{n}.png")) for n in range(3)])
    same = optimized(calibration=[batch], preprocessing=GIVEN)
    assert torch.equal(told(EXAMPLE), same(EXAMPLE))
    assert not torch.equal(told(EXAMPLE), optimized(calibration=photos)(EXAMPLE))
    assert optimized(calibration=photos).preprocessing == Preprocessing().fitted((None, 3, 16, 12), "float32")
    assert optimized(calibration=Named(str(photos), GIVEN)).preprocessing == told.preprocessing
    with pytest.raises(InputError, match="are read by another preprocessing"):
        optimized(calibration=Named(str(photos), Preprocessing()), preprocessing=GIVEN)


@pytest.mark.thorough
def test_a_guess_is_told(photos: Path) -> None:
    def notes(**options: Any) -> list[str]:
        report = optimized(**options).report
        assert report is not None
        return [note for note in report.notes if "prepared as most models want them" in note]

    assert len(notes(calibration=photos)) == 1
    assert (
        notes(calibration=photos, preprocessing=GIVEN) == notes(calibration=Named(str(photos), GIVEN)) == notes() == []
    )


def test_where_nobody_says_anything_nothing_is_made_up() -> None:
    artifact = optimized()
    assert (artifact.preprocessing, artifact.labels) == (None, [])
    keys = {p.key for p in onnx.load(str(artifact.folder / "model.onnx")).metadata_props}
    assert keys == {"model", "target", "versions"}


@pytest.mark.thorough
def test_what_a_model_says_of_itself_is_taken_where_it_fits(photos: Path) -> None:
    model: Any = network()
    model.pretrained_cfg = {
        "input_size": (3, 16, 12), "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.1] * 3, "std": [0.3] * 3,
    }  # fmt: skip
    model.config = SimpleNamespace(id2label={"1": "b", "0": "a", "3": "d", "2": "c"})
    artifact = optimized(model, calibration=photos)
    assert (artifact.preprocessing.resize, artifact.preprocessing.mean) == ((20, 15), (0.1, 0.1, 0.1))
    assert artifact.labels == ["a", "b", "c", "d"]
    other = optimized(model, torch.rand(2, 3, 20, 20), class_labels=LABELS, calibration=None)
    assert (other.preprocessing, other.labels) == (None, LABELS)  # captured for images of another size
    model.config.id2label = {n: f"LABEL_{n}" for n in range(4)}
    assert optimized(model).labels == []


@pytest.mark.parametrize("options, message", [
    ({"class_labels": ["cat"]}, r"class_labels do not fit the model: there are 1, and the first output \[N, 4\] has 4"),
    ({"class_labels": "abcd"}, "class_labels must be a list of 1 to"),
    ({"class_labels": ["a", "b", 3, "d"]}, "class 2 is called 3"),
    ({"class_labels": {0: "a", 2: "b"}}, "are not numbered from 0 to 1"),
    ({"preprocessing": Preprocessing(crop=(9, 9))}, r"but it gives NCHW \[1, 3, 9, 9\]"),
    ({"preprocessing": {"crop_pct": 1, "mean": 0.5, "std": 0, "input_size": (3, 16, 12)}}, "std must not be 0"),
    ({"preprocessing": 3}, "preprocessing cannot be read from int"),
])  # fmt: skip
def test_mistakes_are_told_before_any_work(options: Any, message: str) -> None:
    def fail(model: Any) -> float:
        raise AssertionError("the model was run")

    with pytest.raises(InputError, match=message):
        optimized(evaluate=fail, **options)


def test_models_that_take_more_than_an_image_have_no_preprocessing() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(InputError, match="for a model that takes an image and nothing else, this one takes f32"):
        optimized(Two().eval(), (EXAMPLE, EXAMPLE), calibration=None, preprocessing=GIVEN)


def test_classes_are_counted_where_the_output_has_them() -> None:
    pixels = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    assert optimized(pixels, class_labels=LABELS).labels == LABELS
    words = nn.Sequential(nn.Linear(6, 4)).eval()
    assert optimized(words, torch.rand(2, 5, 6), class_labels=LABELS).labels == LABELS
    with pytest.raises(InputError, match="there are 5"):
        optimized(words, torch.rand(2, 5, 6), class_labels=[*LABELS, "e"])


def test_what_is_saved_is_not_annotated_again(tmp_path: Path) -> None:
    loaded = graphopt.load(optimized().save(tmp_path / "deployed"))
    with pytest.raises(InputError, match="is saved or annotated already"):
        loaded.annotate(None, LABELS)
