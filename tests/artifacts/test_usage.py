"""The printed program answers what the artifact answers, where there is neither graphopt nor torch."""

import ast
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hostile import payloads
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt import Preprocessing
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.manifest import TensorSpec
from graphopt.artifacts.usage import image_lines
from graphopt.cli import main
from graphopt.data.preprocessing import Interpolation
from graphopt.targets import find
from graphopt.utils.errors import InputError

image, ImageOps = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
# In place of the installation: its packages, without some.
RUNNER = """
import sys
missing = %r
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Missing())
sys.path += %r
program, *sys.argv[:] = sys.argv[1:]
namespace = {"__name__": "__main__", "__file__": program}
exec(compile(open(program).read(), program, "exec"), namespace)
import numpy
numpy.savez(sys.argv[-1], *namespace["outputs"])
assert not set(missing) & set(sys.modules)
"""
MISSING = ("graphopt", "torch", "onnx")
PACKAGES = [p for p in sys.path if p and not (Path(p) / "graphopt").is_dir() and Path(p).is_dir()]
LABELS = ["cat", "a 'dog'", '"""\n', "\u00e9tang", "x"]


class Classifier(nn.Sequential):
    def __init__(self, channels: int = 3, last: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(LABELS))
        )
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = x.permute(0, 3, 1, 2) if self.last else x
        return super().forward(x.float())


def optimized(model: nn.Module, example: Any, **options: Any) -> Artifact:
    quick: dict[str, Any] = {"target": "x86-avx2", "calibration": [example], "measure": False, **options}
    artifact: Artifact = graphopt.optimize(model.eval(), example, **quick).artifact
    return artifact


def answers(
    program: str, tmp_path: Path, *arguments: Path, missing: tuple[str, ...] = MISSING
) -> tuple[list[Any], str]:
    """What the program computes in a process of its own, and prints."""
    (tmp_path / "use.py").write_text(program)
    paths = [tmp_path / "use.py", "use.py", *arguments, tmp_path / "answers.npz"]
    command = [sys.executable, "-I", "-S", "-c", RUNNER % (missing, PACKAGES), *map(str, paths)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", check=False, env={"PYTHONIOENCODING": "utf-8"}
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "answers.npz")
    return [found[name] for name in found.files], done.stdout


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "it's a photo.png"
    exif = image.Exif()
    exif[0x0112] = 6
    rows, columns = np.mgrid[0:91, 0:60]
    waves = [127 + 120 * np.sin(rows / (3 + i) + columns / (5 + i)) for i in range(3)]
    image.fromarray(np.stack(waves, -1).astype("uint8")).save(path, exif=exif)
    return path


WAYS = [
    Preprocessing(),
    Preprocessing(24, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), color="BGR", interpolation="bilinear"),
    Preprocessing((16, 12), keep_ratio=False, interpolation="lanczos", scale=1 / 127.5, mean=(1,), std=(1,)),
    Preprocessing((20, 31), interpolation="nearest", mean=(0.3,), std=(1e-3,)),
]
TARGETS = [
    "x86-avx2",
    pytest.param("executorch", marks=pytest.mark.thorough),
    pytest.param("tvm-x86", marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("way", WAYS, ids=["imagenet", "bgr", "stretched", "wide"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_photo_gets_the_artifact_s_answer_bit_for_bit(
    target: str, way: Preprocessing, photo: Path, tmp_path: Path
) -> None:
    if (runtime := find(target).runtime.name) in ("tvm", "executorch"):
        pytest.importorskip(runtime)
    artifact = optimized(Classifier(), torch.rand(2, 3, 16, 12), target=target, preprocessing=way, class_labels=LABELS)
    loaded = graphopt.load(artifact.save(tmp_path / "it's\\deployed"))
    assert loaded.preprocessing is not None
    wanted = loaded(loaded.preprocessing(photo)).numpy()
    program = loaded.usage()
    missing = ("graphopt",) if target == "executorch" else MISSING  # whose runtime takes tensors, and looks for others
    (found, *_), printed = answers(program, tmp_path, photo, missing=missing)
    assert np.array_equal(found[:1], wanted)
    assert LABELS[int(wanted.argmax())] in printed


@pytest.mark.thorough
@pytest.mark.parametrize("channels, last, dtype", [(1, False, "float32"), (3, True, "float32"), (3, True, "uint8")])
@pytest.mark.parametrize("free", [True, False])
def test_layouts_types_and_fixed_batches(
    channels: int, last: bool, dtype: str, free: bool, photo: Path, tmp_path: Path
) -> None:
    shape = (2, 16, 12, channels) if last else (2, channels, 16, 12)
    example = torch.randint(0, 256, shape, dtype=torch.uint8) if dtype == "uint8" else torch.rand(shape)
    way = (
        Preprocessing(scale=1, mean=(0,), std=(1,)) if dtype == "uint8" else Preprocessing(color="BGR" if last else "L")
    )
    model = Classifier(channels, last)
    artifact = optimized(model, example, preprocessing=way, dynamic_batch=free)
    assert artifact.preprocessing is not None
    batch = np.repeat(artifact.preprocessing(photo, dtype), 1 if free else 2, axis=0)
    (found,), printed = answers(artifact.usage(), tmp_path, photo)
    assert np.array_equal(found, artifact(batch).numpy())
    assert "float32" in printed


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
ways = st.builds(
    dict, crop=st.none() | sizes, resize=st.none() | sizes, keep_ratio=st.booleans(), color=st.sampled_from(["RGB", "BGR", "L"]),
    interpolation=st.sampled_from(get_args(Interpolation)), scale=st.floats(1e-3, 2), mean=st.floats(-1, 1),
    std=st.floats(0.01, 3), layout=st.sampled_from(["NCHW", "NHWC"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(photo=sizes, way=ways)
def test_images_of_any_size_become_the_same_in_program_and_calibration(photo: Any, way: Any) -> None:
    try:
        complete = Preprocessing(**way).fitted((None, None, None, None), "float32")
        assume(complete.layout == way["layout"])
    except InputError:
        assume(False)
    pixels = np.random.default_rng(0).integers(0, 256, (*photo, 3)).astype("uint8")
    spec = TensorSpec("x", "float32", (None, None, None, None))
    stored = io.BytesIO()
    scope: dict[str, Any] = {"np": np, "Image": image, "ImageOps": ImageOps, "sys": SimpleNamespace(argv=["", stored])}
    image.fromarray(pixels).save(stored, "PNG")
    stored.seek(0)
    exec("\n".join(image_lines(complete, spec)), scope)
    stored.seek(0)
    assert np.array_equal(scope["inputs"][0], complete(image.open(stored)))


def test_arrays_are_loaded_for_models_of_anything_else(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, ids: torch.Tensor, unread: torch.Tensor, x: torch.Tensor) -> Any:
            return {"sum": x + ids[:, None], "product": x * 2}

    example = (torch.arange(3), torch.rand(3, 2), torch.rand(3, 4))
    artifact = optimized(Two(), example, calibration=None, passes=[])
    for number, array in enumerate(example):
        np.save(tmp_path / f"{number}.npy", array.numpy())
    program = artifact.usage()
    found, _ = answers(program, tmp_path, *(tmp_path / f"{n}.npy" for n in range(3)))
    wanted = artifact(*example)
    assert [np.array_equal(f, w.numpy()) for f, w in zip(found, wanted.values(), strict=True)] == [True, True]
    assert "input_0 = np.load(sys.argv[1])  # 'ids': int64 ['any']" in program


@pytest.mark.thorough
def test_classes_of_pixels_are_listed(photo: Path, tmp_path: Path) -> None:
    artifact = optimized(
        nn.Sequential(nn.Conv2d(3, 5, 3)), torch.rand(1, 3, 16, 12), preprocessing=WAYS[0], class_labels=list("abcde")
    )
    (found,), printed = answers(artifact.usage(), tmp_path, photo)
    assert str(["abcde"[n] for n in np.unique(found.argmax(1))]) in printed


def test_it_has_the_session_s_options() -> None:
    artifact: Any = optimized(Classifier(), torch.rand(2, 3, 16, 12))
    assert "x64quantprecision" not in artifact.usage()
    artifact.set_threads(3)
    artifact.set_exact_products()
    program = artifact.usage("elsewhere")
    assert "options.add_session_config_entry('session.x64quantprecision', '1')" in program
    assert "options.intra_op_num_threads = 3" in program
    assert "disabled_optimizers=['WeightBiasQuantization']" in program
    assert "folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'elsewhere')" in program
    assert "InferenceSession(os.path.join(folder, 'model.onnx')" in program
    assert len([line for line in program.splitlines() if line]) <= 20


def test_a_folder_that_is_not_absolute_lies_beside_the_program(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = optimized(Classifier(), torch.rand(2, 3, 16, 12), preprocessing=WAYS[0], class_labels=LABELS)
    artifact.save(tmp_path / "deployed")
    monkeypatch.chdir(tmp_path)
    program = CliRunner().invoke(main.app, ["show", "deployed", "--usage"]).stdout
    (found,), _ = answers(program, tmp_path, photo)  # it is started in another folder
    assert artifact.preprocessing is not None
    assert np.array_equal(found, artifact(artifact.preprocessing(photo)).numpy())


def hostile_names() -> list[str]:
    return [*payloads("x"), "x\n", "x'''\n", "x\u2028import os", "x\\", "x\r\nimport os", "\u202e", "{x}", "%s", "#"]


@pytest.fixture(scope="module")
def plain() -> Artifact:
    return optimized(Classifier(), torch.rand(2, 3, 16, 12))


@pytest.mark.parametrize("name", hostile_names(), ids=ascii)
def test_names_of_a_file_get_into_the_program_as_literals_alone(name: str, plain: Any) -> None:
    inputs, outputs = plain.manifest.inputs, plain.manifest.outputs
    renamed = replace(
        plain.manifest,
        inputs=[replace(inputs[0], name=name, free=(name,))],
        outputs=[replace(outputs[0], name=name)],
        target={**plain.manifest.target, "name": name},
        model=name,
    )
    other = type(plain)(plain.folder, renamed)
    other._session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name=name)])  # a model that calls it so
    program = other.usage(name)
    assert program.isascii()
    assert shape_of(program) == shape_of(plain.usage("x"))
    assert ascii(name) in program


def shape_of(program: str) -> list[str]:
    """The statements, their texts aside."""
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return [ast.dump(statement) for statement in tree.body]


@pytest.mark.thorough
def test_what_has_no_runtime_of_its_own_says_so() -> None:
    artifact = optimized(Classifier(), torch.rand(2, 3, 16, 12), target="nnie")
    with pytest.raises(InputError, match="Classifier for nnie is packed codes, which no runtime computes with"):
        artifact.usage()


@pytest.mark.thorough
def test_c_and_libraries_for_other_machines() -> None:
    pytest.importorskip("tvm")
    bare = optimized(Classifier(), torch.rand(2, 3, 16, 12), target="tvm-cortex-m7", dynamic_batch=False)
    with pytest.raises(InputError, match=r"runs in a program of yours: .*link model\.c"):
        bare.usage()


@pytest.mark.thorough
def test_the_command_prints_it_and_nothing_else(tmp_path: Path) -> None:
    artifact = optimized(Classifier(), torch.rand(2, 3, 16, 12), preprocessing=WAYS[1], class_labels=LABELS)
    artifact.save(tmp_path / "deployed")
    result = CliRunner().invoke(main.app, ["show", str(tmp_path / "deployed"), "--usage"])
    assert result.exit_code == 0, result.output
    assert result.stdout == graphopt.load(tmp_path / "deployed").usage(tmp_path / "deployed")
    shown = CliRunner().invoke(main.app, ["show", str(tmp_path / "deployed")]).stdout
    assert "images   Preprocessing(resize=(24, 24)" in shown
    assert json.dumps("cat")[1:-1] in shown
    packed = optimized(Classifier(), torch.rand(2, 3, 16, 12), target="nnie").save(tmp_path / "packed")
    refused = CliRunner().invoke(main.app, ["show", str(packed), "--usage"])
    assert refused.exit_code == 1
