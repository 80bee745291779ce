"""A deployed model without graphopt: a short program that computes its answer with its runtime, NumPy and Pillow.

    python use.py photo.jpg                  where the artifact says what is done to images
    python use.py first.npy second.npy       else: an array for each input

Backends say how their files are opened and called (`Calls`); what comes before and behind is the same for all. The artifact's
names, numbers and paths get into the program as Python literals of ASCII characters alone, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.artifacts.manifest import Manifest, TensorSpec
from graphopt.artifacts.storage import STORAGE
from graphopt.data.preprocessing import Preprocessing
from graphopt.utils.errors import InputError

MOST = 5  # classes that are printed


@dataclass(frozen=True)
class Calls:
    """How a runtime opens and calls a model, as lines of Python, to which `folder` is where its files lie.

    Attributes:
        imports: of the runtime. open: what is done once. run: from `inputs`, a list of arrays, to `outputs`.
        labels: an expression for the names of classes.
        batch: of the samples of one call, where the runtime takes no other number.
    """

    imports: Sequence[str]
    open: Sequence[str]
    run: Sequence[str]
    labels: str
    batch: int | None = None
    first: Sequence[str] = field(default_factory=list)  # behind `import os`, before anything else is imported


def script(manifest: Manifest, calls: Calls, folder: Path) -> str:
    """The program. `outputs` in it are the answers, arrays in the manifest's order.

    Args:
        folder: of the artifact; where it is not absolute, beside the program, wherever that is started.

    Raises:
        InputError: NumPy has no such type as an input's, or the files are entropy-coded, which graphopt alone reads.
    """
    if STORAGE in manifest.options:
        raise InputError(
            f"the files of {manifest.model} are entropy-coded; artifact.store(None), then save(), leaves what its runtime takes"
        )
    for spec in manifest.inputs:
        if spec.dtype == "bfloat16":
            raise InputError(
                f"input {spec.name!r} is {spec.dtype}, which NumPy has no type for; call the artifact itself"
            )
    preprocessing = manifest.preprocessing
    pillow = ["from PIL import Image, ImageOps"] if preprocessing is not None else []
    if preprocessing is not None:
        given = image_lines(preprocessing, manifest.inputs[0], calls.batch)
    else:
        given = [_loaded(number, spec, calls.batch) for number, spec in enumerate(manifest.inputs)]
        given += [f"inputs = [{', '.join(f'input_{number}' for number in range(len(manifest.inputs)))}]"]
    system = ["import os", *calls.first, "import json", "import sys"]
    imports = [*system, "", "import numpy as np", *calls.imports, *pillow]
    opened = [_folder(folder), *calls.open]
    return "\n".join([*imports, "", *opened, "", *given, "", *calls.run, *_answers(manifest, calls), ""])


def _folder(folder: Path) -> str:
    if folder.is_absolute():
        return f"folder = {str(folder)!a}"
    return f"folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), {str(folder)!a})  # beside this program"


def image_lines(preprocessing: Preprocessing, spec: TensorSpec, batch: int | None = None) -> list[str]:
    """What `Preprocessing` does to an image, in the same order and types. Ends with `inputs`."""
    p, color = preprocessing, "L" if preprocessing.color == "L" else "RGB"
    lines = [f"image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert({color!r})"]
    if isinstance(p.resize, tuple):
        tall, wide = p.resize
        size = f"({wide}, {tall})"
        if p.keep_ratio:
            lines += ["width, height = image.size"]
            size = (
                f"({wide}, {wide} * height // width) if width * {tall} <= height * {wide} "
                f"else ({tall} * width // height, {tall})"
            )
        lines += [f"image = image.resize({size}, Image.Resampling.{p.interpolation.upper()})"]
    if p.crop is not None:
        height, width = p.crop
        lines += [
            f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    flipped = "[..., ::-1]" if p.color == "BGR" else ""
    lines += [f"pixels = np.asarray(image).reshape(1, image.height, image.width, -1){flipped}"]
    mean, std = (f"np.array({list(values)!r}, np.float32)" for values in (p.mean, p.std))
    lines += [f"values = (pixels.astype(np.float32) * np.float32({p.scale!r}) - {mean}) / {std}"]
    ordered = "values" if p.layout == "NHWC" else "values.transpose(0, 3, 1, 2)"
    lines += [f"inputs = [np.ascontiguousarray({ordered}, dtype={spec.dtype!r})]"]
    if (samples := spec.shape[0] or batch or 1) > 1:
        lines += [f"inputs = [np.repeat(inputs[0], {samples}, axis=0)]  # it takes {samples} at once"]
    return lines


def _loaded(number: int, spec: TensorSpec, batch: int | None) -> str:
    sizes = [size if isinstance(size, int) else "any" for size in spec.sizes]
    if batch is not None and sizes[:1] == ["any"]:
        sizes[0] = batch
    return f"input_{number} = np.load(sys.argv[{number + 1}])  # {spec.name!a}: {spec.dtype} {sizes!a}"


def _answers(manifest: Manifest, calls: Calls) -> list[str]:
    names = [spec.name for spec in manifest.outputs]
    shown = [f"for name, output in zip({names!a}, outputs):", "    print(name, output.dtype, output.shape)"]
    if not manifest.labels:
        return shown
    lines = [*shown, f"labels = {calls.labels}"]
    if len(manifest.outputs[0].shape) == 2:
        return [
            *lines,
            f"for index in np.argsort(-outputs[0][0])[:{MOST}]:",
            "    print(labels[index], outputs[0][0, index])",
        ]
    axis = 2 if len(manifest.outputs[0].shape) == 3 else 1
    return [*lines, f"print([labels[index] for index in np.unique(outputs[0].argmax({axis}))])"]
