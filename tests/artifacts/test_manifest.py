import json
from pathlib import Path
from typing import Any

import pytest

from graphopt.artifacts.manifest import FORMAT, Manifest, TensorSpec, _checksum, listing, read_manifest
from graphopt.artifacts.report import Report
from graphopt.data.preprocessing import Preprocessing
from graphopt.targets import find
from graphopt.utils.errors import ArtifactError, InputError

TARGET = find("x86").to_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"weights" * 100)
    manifest = Manifest(
        model="Net",
        target=TARGET,
        inputs=[TensorSpec("x", "float32", (None, 3, 8, 8))],
        outputs=[TensorSpec("output", "float32", (None, 10))],
        input_structure={"tuple": [{"tuple": [None]}, {"dict": {}}]},
        output_structure=None,
        files=listing(tmp_path),
        report=Report("Net", "host", sqnr_db=float("inf")).to_dict(),
    )
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    return tmp_path


def alter(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest and sign it again, as a bug or an attacker would."""
    path = folder / "manifest.json"
    data = {**json.loads(path.read_text()), **changes}
    data.pop("checksum")
    path.write_text(json.dumps({**data, "checksum": _checksum(data)}))


def test_a_manifest_comes_back_as_it_was(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.inputs == [TensorSpec("x", "float32", (None, 3, 8, 8))]
    assert manifest.runtime == "onnxruntime"
    assert manifest.versions["graphopt"]
    assert manifest.to_json() == (folder / "manifest.json").read_bytes()
    assert str(manifest.inputs[0]) == "x: float32[N, 3, 8, 8]"


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file model\.onnx"):
        read_manifest(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged: 7 bytes instead of 700"):
        read_manifest(folder)


def test_a_tampered_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"Weights" * 100)
    with pytest.raises(ArtifactError, match=r"model\.onnx was altered .*SHA-256"):
        read_manifest(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"lacks its file model\.onnx"):
        read_manifest(folder)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_truncated_manifest_is_named(folder: Path, keep: int) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged or cut short"):
        read_manifest(folder)


def test_binary_rubbish_is_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="damaged or cut short"):
        read_manifest(folder)


def test_an_edited_manifest_is_noticed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("float32", "float16", 1))
    with pytest.raises(ArtifactError, match="its checksum differs"):
        read_manifest(folder)


def test_a_newer_format_says_who_wrote_it_and_to_upgrade(folder: Path) -> None:
    alter(folder, format=FORMAT + 1, versions={"graphopt": "9.1"}, invention=3)
    with pytest.raises(ArtifactError, match=rf"written by graphopt 9\.1 in format {FORMAT + 1}, .*upgrade graphopt"):
        read_manifest(folder)


def test_an_older_format_says_who_wrote_it_and_what_to_do(folder: Path) -> None:
    alter(folder, format=FORMAT - 1, versions={"graphopt": "0.0.9"}, target={"name": "x86", "runtime": "onnxruntime"})
    with pytest.raises(
        ArtifactError, match=rf"written by graphopt 0\.0\.9 in format {FORMAT - 1}, .*optimize the model again"
    ):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/../../b", "a\\..\\b", "C:/x", "", "a\0b"])
def test_file_names_cannot_leave_the_folder(folder: Path, name: str) -> None:
    alter(folder, files={name: {"size": 700, "sha256": "0"}})
    with pytest.raises(ArtifactError, match="leads out of the artifact's folder"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"surprise": 1}, "unknown or missing entries surprise"),
        ({"inputs": [{"name": "x", "dtype": "float31", "shape": []}]}, "unknown element type 'float31'"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}, r"shape \[-1\]"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [3, "N"]}]}, "has the shape"),
        ({"inputs": {}}, "inputs is a dict, not a list"),
        ({"inputs": []}, "a structure of 1 tensors for 0"),
        ({"output_structure": {"exec": "x"}}, "not a structure"),
        ({"files": {"a": {"size": "7", "sha256": ""}}}, "the entry of a is"),
        ({"report": {"nonsense": 1}}, "cannot hold nonsense"),
        ({"target": "arm"}, "target is a str"),
        ({"target": {"name": "arm"}}, "the target must be described by name, description, formats"),
        (
            {"target": {**TARGET, "runtime": "onnxruntime"}},
            "the target's runtime must be described by name, architecture",
        ),
        (
            {"target": {**TARGET, "kernels": {"integer": []}}},
            "the target's kernels must be described by integer, tables",
        ),
    ],
)
def test_entries_of_an_unknown_kind_are_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    alter(folder, **changes)
    with pytest.raises(ArtifactError, match=says):
        read_manifest(folder)


def test_other_folders_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no artifact folder"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(ArtifactError, match="is no artifact: it has no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ArtifactError, match="not a graphopt manifest"):
        read_manifest(tmp_path)


PREPARED = Preprocessing(crop=(8, 8)).fitted((None, 3, 8, 8), "float32")
NOT_PREPARED = [
    ({"std": [0.0]}, "scale and std must not be 0"),
    ({"crop": [9, 8], "resize": [9, 9]}, "does not fit: the input is"),
    ({"layout": "NHWC"}, "does not fit: the input is"),
    ({"layout": None}, "no image of a known layout"),
    ({"color": "__import__('os')"}, "color must be one of"),
    ({"interpolation": "bicubic); import os; print("}, "interpolation must be one of"),
    ({"mean": ["1"]}, "mean must be a finite number"),
    ({"resize": [10**12, 8]}, "resize must be a height and a width"),
    ({"more": 1}, "preprocessing has no more"),
]


def test_preprocessing_and_labels_come_back_as_they_were(folder: Path) -> None:
    labels = [f"class {n}" for n in range(10)]
    alter(folder, preprocessing=PREPARED.to_dict(), labels=labels)
    manifest = read_manifest(folder)
    assert (manifest.preprocessing, manifest.labels) == (PREPARED, labels)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("changes, message", NOT_PREPARED, ids=[str(changes) for changes, _ in NOT_PREPARED])
def test_preprocessing_that_cannot_be_meant_is_refused(folder: Path, changes: Any, message: str) -> None:
    alter(folder, preprocessing={**PREPARED.to_dict(), **changes})
    with pytest.raises(ArtifactError, match=f"is not a valid manifest .*{message}"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "labels", [["a"] * 9, ["a"] * 9 + [3], ["a"] * 9 + [""], ["a"] * 9 + ["x" * 1001], ["a"] * 2**18]
)
def test_labels_that_are_none_are_refused(folder: Path, labels: Any) -> None:
    alter(folder, labels=labels)
    with pytest.raises(ArtifactError, match=r"is not a valid manifest .*(labels do not fit|class_labels)"):
        read_manifest(folder)
