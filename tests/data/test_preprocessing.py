"""From images to a model's input: values by hand, values of other libraries, and what of them is refused."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from graphopt.data.preprocessing import Preprocessing
from graphopt.data.preprocessing_sources import own_preprocessing, preprocessing_of
from graphopt.utils.errors import InputError

pillow = pytest.importorskip("PIL.Image")
PHOTO = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (90, 61, 3)).astype("uint8"))
IMAGE = (None, 3, 32, 24)
TIMM = {
    "input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2,) * 3,
}  # fmt: skip

MISTAKES = [
    ({"std": (0.2, 0.0, 0.2)}, r"scale and std must not be 0, got .*std=\(0\.2, 0\.0, 0\.2\)"),
    ({"scale": 0}, "scale and std must not be 0, got scale=0"),
    ({"mean": (0.1, 0.2)}, "mean must have one value, or one for each of 3 channels"),
    ({"mean": (0.1, 0.2, 0.3), "color": "L"}, "mean and std have 3 and 3 values, for L images"),
    ({"mean": ("a",)}, "mean must be a finite number, got 'a'"),
    ({"mean": (float("nan"),)}, "mean must be a finite number, got nan"),
    ({"scale": 1e-40}, "scale=1e-40 is next to 0"),
    ({"std": (10**400,)}, "std must be a finite number"),
    ({"resize": 0}, "resize must be a height and a width of 1 to 16384"),
    ({"resize": 10**9}, "resize must be a height and a width"),
    ({"crop": (224,)}, "crop must be a height and a width"),
    ({"crop": (2.5, 3)}, "crop must be a height and a width"),
    ({"resize": 200, "crop": (224, 100)}, r"crop \(224, 100\) is larger than resize \(200, 200\)"),
    ({"interpolation": "cubic"}, "interpolation must be one of nearest, box, .*, got 'cubic'"),
    ({"interpolation": ["bicubic"]}, "interpolation must be one of"),
    ({"color": "CMYK"}, "color must be one of RGB, BGR, L"),
    ({"layout": "NHCW"}, "layout must be one of NCHW, NHWC"),
    ({"keep_ratio": 1}, "keep_ratio must be True or False"),
]


@pytest.mark.parametrize("fields, message", MISTAKES, ids=[str(fields) for fields, _ in MISTAKES])
def test_values_that_cannot_be_meant_are_refused_by_hand_and_from_a_file(fields: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing(**fields)
    with pytest.raises(InputError, match=message):
        Preprocessing.from_dict(json.loads(json.dumps(fields)) if "nan" not in message else fields)


def test_it_comes_back_from_json_as_it_was() -> None:
    given = Preprocessing(256, crop=(224, 192), mean=(0.5,), std=(0.1, 0.2, 0.3), color="BGR", interpolation="lanczos")
    assert given.resize == (256, 256)
    assert Preprocessing.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    with pytest.raises(InputError, match="preprocessing has no crops; it has color, crop"):
        Preprocessing.from_dict({"crops": 3})
    with pytest.raises(InputError, match="preprocessing has no list"):
        Preprocessing.from_dict([1])


@pytest.mark.parametrize("dtype, scale", [("float32", 1 / 255), ("uint8", 1)])
def test_what_is_left_open_follows_from_the_input(dtype: str, scale: float) -> None:
    given = Preprocessing(scale=scale, mean=(0,), std=(1,))
    found = given.fitted(IMAGE, dtype)
    assert (found.resize, found.crop, found.layout, found.color) == ((32, 24), (32, 24), "NCHW", "RGB")
    assert found.fitted(IMAGE, dtype) == found
    assert found(PHOTO, dtype).shape == (1, 3, 32, 24)
    assert str(found(PHOTO, dtype).dtype) == dtype
    last = given.fitted((None, 32, 24, 1), dtype)
    assert (last.layout, last.color, last(PHOTO, dtype).shape) == ("NHWC", "L", (1, 32, 24, 1))
    assert given.fitted((None, 3, None, None), dtype, (1, 3, 20, 30)).size == (20, 30)
    assert (
        Preprocessing(64, scale=scale, mean=(0,), std=(1,)).fitted((1, 3, None, None), dtype, (1, 3, 20, 30)).size
        is None
    )


@pytest.mark.parametrize("fields, shape, dtype, message", [
    ({}, (None, 10), "float32", r"is for images, and the input is float32\[N, 10\]"),
    ({}, (None, 5, 8, 8), "float32", "not \\[N, 1 or 3, H, W\\]"),
    ({"crop": (8, 9)}, (None, 3, 8, 8), "float32", r"is float32\[N, 3, 8, 8\], but it gives NCHW \[1, 3, 8, 9\]"),
    ({"resize": (8, 9), "keep_ratio": False}, (None, 3, 8, 8), "float32", r"it gives NCHW \[1, 3, 8, 9\]"),
    ({"resize": 4}, (None, 3, 8, 8), "float32", "is larger than resize"),
    ({"color": "L", "mean": 0, "std": 1}, (None, 3, 8, 8), "float32", r"it gives NCHW \[1, 1, 8, 8\]"),
    ({}, (None, 3, 8, 8), "uint8", "whole numbers: give scale=1"),
    ({}, (None, 3, 8, 8), "int64", "images are float32 or uint8"),
])  # fmt: skip
def test_inputs_that_are_no_such_image_are_refused(fields: Any, shape: Any, dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing(**fields).fitted(shape, dtype)


def test_photos_are_turned_resized_cropped_and_put_in_order(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    PHOTO.save(tmp_path / "a.png", exif=exif)
    steps = PHOTO.transpose(pillow.Transpose.ROTATE_270)
    assert steps.size == (90, 61)
    steps = steps.resize((40 * 90 // 61, 40), pillow.Resampling.BILINEAR)
    left, top = round((steps.width - 24) / 2), 4
    pixels = np.asarray(steps.crop((left, top, left + 24, top + 32)))[..., ::-1].astype("float32")
    wanted = ((pixels * np.float32(0.1) - np.float32(1)) / np.float32([1, 2, 4])).transpose(2, 0, 1)[None]
    given = Preprocessing(40, interpolation="bilinear", color="BGR", scale=0.1, mean=(1,), std=(1, 2, 4))
    found = given.fitted(IMAGE, "float32")(tmp_path / "a.png")
    assert np.array_equal(found, wanted)


def test_stretched_images_lose_their_ratio_and_nothing_at_the_sides() -> None:
    halves = np.zeros((10, 40, 3), "uint8")
    halves[:, 20:] = 255
    given = Preprocessing((8, 8), keep_ratio=False, interpolation="nearest", scale=1, mean=(0,), std=(1,))
    assert given.fitted((1, 3, 8, 8), "float32")(pillow.fromarray(halves))[0, 0, 0].tolist() == [0.0] * 4 + [255.0] * 4


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    given = Preprocessing(crop=(100, 100))
    with pytest.raises(InputError, match=r"an image of 90 x 61 is smaller than the crop \(100, 100\)"):
        given(PHOTO)


# ---- Other libraries' forms --------------------------------------------------------------------------------------------


def test_timm_s_configurations_are_taken() -> None:
    found = preprocessing_of(TIMM)
    assert (found.resize, found.crop, found.keep_ratio, found.interpolation) == (
        (256, 256),
        (224, 224),
        True,
        "bilinear",
    )
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert not preprocessing_of({**TIMM, "crop_mode": "squash"}).keep_ratio
    assert (
        preprocessing_of({"pretrained_cfg": TIMM}) == found == own_preprocessing(SimpleNamespace(pretrained_cfg=TIMM))
    )
    assert own_preprocessing(SimpleNamespace(pretrained_cfg={**TIMM, "crop_mode": "border"})) is None
    with pytest.raises(InputError, match="crop_mode='border'"):
        preprocessing_of({**TIMM, "crop_mode": "border"})
    with pytest.raises(InputError, match="scale and std must not be 0"):
        preprocessing_of({**TIMM, "std": (0, 1, 1)})


def test_files_of_image_processors_are_taken(tmp_path: Path) -> None:
    config = {
        "do_resize": True, "size": {"shortest_edge": 256}, "resample": 2, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 127.5, "do_normalize": False,
        "do_flip_channel_order": True,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = preprocessing_of(tmp_path)
    assert found == preprocessing_of(str(tmp_path / "preprocessor_config.json"))
    wanted = Preprocessing(
        256, crop=(224, 224), interpolation="bilinear", color="BGR", scale=1 / 127.5, mean=(0,), std=(1,)
    )  # fmt: skip
    assert found == wanted
    with pytest.raises(InputError, match="do_center_crop without do_resize"):
        preprocessing_of({**config, "do_resize": False})
    with pytest.raises(InputError, match="do_pad"):
        preprocessing_of({**config, "do_pad": True})
    with pytest.raises(InputError, match=r"the size .*longest_edge.* is not known"):
        preprocessing_of({**config, "size": {"longest_edge": 800}})
    (tmp_path / "preprocessor_config.json").write_text("{" * 9)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        preprocessing_of(tmp_path)


class Preset:
    """As torchvision's `ImageClassification`, and one that does something more."""

    def __init__(self, more: float = 0.0) -> None:
        self.resize_size, self.crop_size, self.interpolation = [48], [32], SimpleNamespace(value="bilinear")
        self.mean, self.std, self.more = [0.5], [0.25], more

    def __call__(self, image: Any) -> torch.Tensor:
        mine = Preprocessing(48, crop=(32, 32), interpolation="bilinear", mean=(0.5,), std=(0.25,))
        return torch.from_numpy(mine.fitted((1, 3, 32, 32), "float32")(image)[0]) + self.more


def test_what_can_be_called_is_tried() -> None:
    found = preprocessing_of(Preset())
    assert (found.resize, found.crop, found.mean) == ((48, 48), (32, 32), (0.5,))
    assert preprocessing_of(SimpleNamespace(transforms=Preset)) == found  # weights
    with pytest.raises(InputError, match="Preset does something that its attributes do not say"):
        preprocessing_of(Preset(more=0.5))
    with pytest.raises(InputError, match="cannot be read from function"):
        preprocessing_of(test_what_can_be_called_is_tried)


@pytest.mark.thorough
def test_the_libraries_own_objects_are_taken() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    weights = zoo.torchvision().models.ResNet50_Weights.IMAGENET1K_V2
    found = preprocessing_of(weights)
    assert (found.resize, found.crop, found.interpolation) == ((232, 232), (224, 224), "bilinear")
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    config = timm.create_model("resnet18").pretrained_cfg
    composed = preprocessing_of(timm.data.create_transform(**timm.data.resolve_data_config(config)))
    assert composed.mean == pytest.approx(preprocessing_of(config).mean)
    assert (composed.resize, composed.crop) == (preprocessing_of(config).resize, (224, 224))
    stretched = preprocessing_of(transformers.ViTImageProcessor())
    assert (stretched.keep_ratio, stretched.resize, stretched.mean) == (False, (224, 224), (0.5, 0.5, 0.5))
    preprocessing_of(transformers.CLIPImageProcessor())
    with pytest.raises(InputError, match="does something that its attributes do not say"):
        preprocessing_of(transformers.LevitImageProcessor())  # it resizes to more than its `size` says
