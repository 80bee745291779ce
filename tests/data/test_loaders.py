import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from graphopt.data.calibration import Calibration
from graphopt.data.loaders import Named
from graphopt.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from graphopt.ir.graph import Graph
from graphopt.utils import imports
from graphopt.utils.errors import InputError


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph.capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 16, 12))


FLOATS = np.random.default_rng(0).standard_normal((40, 3, 16, 12)).astype("float32")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 16, 12, 3)).astype("uint8")


def first(source: object, graph: Graph) -> torch.Tensor:
    return next(iter(Calibration(source, graph)))[0]


def test_arrays_are_found_by_suffix_rank_and_key(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    np.savez(tmp_path / "xy.npz", images=FLOATS, y=np.zeros(40, int))
    np.savez(tmp_path / "two.npz", train=FLOATS, test=FLOATS[::-1])
    for name in ("x.npy", "xy.npz", "two.npz:train"):
        assert torch.equal(first(Named(str(tmp_path / name)), graph), torch.tensor(FLOATS[:32]))
    with pytest.raises(InputError, match=r"train \[40, 3, 16, 12\], test .*add :name to the path"):
        Named(str(tmp_path / "two.npz")).load(graph)
    with pytest.raises(InputError, match="has no array 'valid'; it has train, test"):
        Named(str(tmp_path / "two.npz:valid")).load(graph)


def test_raw_pixels_are_normalized(graph: Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=PIXELS, y=np.zeros(40, int))
    batch = first(Named(str(tmp_path / "x.npz"), Preprocessing(mean=(0.5,), std=(0.25,))), graph)
    expected = (torch.tensor(PIXELS[:32]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch, expected)


def test_pixels_with_channels_first_stay_so(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS.transpose(0, 3, 1, 2))
    batch = first(Named(str(tmp_path / "x.npy"), Preprocessing(scale=1.0, mean=(0.0,), std=(1.0,))), graph)
    assert torch.equal(batch, torch.tensor(PIXELS[:32]).permute(0, 3, 1, 2).float())


def test_a_limit_spreads_over_the_data(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    batch = first(Named(str(tmp_path / "x.npy"), limit=4), graph)
    assert torch.equal(batch, torch.tensor(FLOATS[[0, 10, 20, 30]]))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"nonsense"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_damaged_files_are_explained(graph: Graph, tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as numbers"):
        Named(str(tmp_path / f"x{suffix}")).load(graph)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickles_are_never_run(graph: Graph, tmp_path: Path, suffix: str) -> None:
    save = np.savez if suffix == ".npz" else np.save
    save(tmp_path / f"x{suffix}", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read as numbers"):
        Named(str(tmp_path / f"x{suffix}")).load(graph)


def test_a_folder_of_images_is_resized_and_normalized(graph: Graph, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "sub").mkdir()
    image.new("RGB", (24, 32), (255, 0, 0)).save(tmp_path / "a.png")
    image.new("L", (50, 40), 255).save(tmp_path / "sub" / "b.jpg")
    batch = first(Named(str(tmp_path)), graph)
    assert batch.shape == (2, 3, 16, 12)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(batch[0], red.reshape(3, 1, 1).expand(3, 16, 12))
    (tmp_path / "c.png").write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match=r"c\.png cannot be read"):
        assert first(Named(str(tmp_path)), graph).shape == (2, 3, 16, 12)


@pytest.mark.filterwarnings("ignore:the image")
def test_what_is_left_out_of_a_folder_is_noted_once(graph: Graph, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (24, 32)).save(tmp_path / "a.png")
    for name in ("b", "c", "d", "e"):
        (tmp_path / f"{name}.jpg").write_bytes(b"nonsense")
    data = Calibration(str(tmp_path), graph)
    for _ in range(2):
        assert sum(len(x) for (x,) in data) == 1
    assert data.notes == [f"4 of 5 images in {tmp_path} cannot be read and are left out: b.jpg, c.jpg, d.jpg, ..."]


def test_a_folder_without_images_is_refused(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        Named(str(tmp_path)).load(graph)
    rows = Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    with pytest.raises(InputError, match=r"is a folder of images, but the model takes f32\[N, 3\]; use \.npz"):
        Named(str(tmp_path)).load(rows)


def test_grey_images_take_the_average_of_the_default_mean(tmp_path: Path) -> None:
    grey = Graph.capture(nn.Conv2d(1, 4, 3).eval(), torch.randn(2, 1, 16, 12))
    np.save(tmp_path / "x.npy", np.zeros((2, 16, 12, 1), "uint8"))
    assert first(Named(str(tmp_path / "x.npy")), grey).unique().tolist() == pytest.approx([-0.449 / 0.226])
    three = Preprocessing(mean=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match="mean and std have 3 and 3 values, for L images"):
        Named(str(tmp_path / "x.npy"), three).load(grey)


def test_pixels_of_other_channels_are_normalized_by_one_mean_for_all(tmp_path: Path) -> None:
    bands = Graph.capture(nn.Conv2d(5, 4, 3).eval(), torch.randn(2, 5, 16, 12))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 5)).astype("uint8")
    np.save(tmp_path / "x.npy", pixels)
    one = Named(str(tmp_path / "x.npy"), Preprocessing(mean=(0.5,), std=(0.25,)))
    torch.testing.assert_close(first(one, bands), (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    with pytest.raises(InputError, match="mean and std have 3 values, but the images have 5 channels"):
        Calibration(Named(str(tmp_path / "x.npy")), bands)


def test_python_names(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calibration.py").write_text("import torch\ndef images(): return [torch.zeros(1, 3, 16, 12)]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert first(Named("my_calibration:images"), graph).shape == (1, 3, 16, 12)
    with pytest.raises(InputError, match="my_calibration has no 'image'; did you mean 'images'"):
        imports.find("my_calibration:image")
    with pytest.raises(InputError, match="there is no module 'not_there'"):
        imports.find("not_there:x")
    with pytest.raises(InputError, match="is not of the form"):
        imports.find("my_calibration")
    (tmp_path / "needs.py").write_text("import not_there_either\n")
    with pytest.raises(InputError, match="needs the module 'not_there_either'"):
        imports.find("needs:x")
    with pytest.raises(InputError, match=r"there is no file, folder or package\.module:function called missing\.txt"):
        Named("missing.txt")


@pytest.mark.thorough
def test_real_images_come_out_as_they_were_prepared_for_training(zoo: ModuleType, data_dir: Path) -> None:
    graph = Graph.capture(zoo.cifar_resnet(20), torch.randn(1, 3, 32, 32))
    batch = first(Named(str(data_dir / "cifar10_test.npz"), limit=100), graph)
    images, _ = zoo.cifar10("test")
    torch.testing.assert_close(batch, images[: 32 * 100 : 100])
