"""What commands take and share: the options of models and their data, and how their text is read."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import completion
from graphopt.utils.errors import InputError

# PyTorch is imported where a command needs it: `graphopt --help` answers at once.
if TYPE_CHECKING:
    from torch import Tensor

    from graphopt.data.loaders import Named
    from graphopt.data.preprocessing import Preprocessing
    from graphopt.passes.quantization import LayerFormat
    from graphopt.targets import Target

Model = Annotated[str, typer.Argument(help="package.module:factory, or the path of a .pt2 file.")]
Aim = Annotated[
    str,
    typer.Option(
        help="What to optimize for; see `graphopt targets`. One of your own: package.module:TARGET.",
        autocompletion=completion.targets,
    ),
]
Judged = Annotated[
    str, typer.Option(help="A target; `graphopt targets` lists them.", autocompletion=completion.targets)
]
Typical = Annotated[
    str | None,
    typer.Option(help="Typical inputs: .npz[:name], .npy, a folder of images, or package.module:function."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an example input, e.g. 1,3,224,224 or 1,128:int64; once per input."),
]
Free = Annotated[
    list[str] | None,
    typer.Option(help="Sizes of an input that calls may choose, by name, e.g. image:2=height,3=width; once per input."),
]
Samples = Annotated[int, typer.Option(min=1, help="Calibration samples to take at most, evenly spread.")]
Prepared = Annotated[
    str | None,
    typer.Option(
        help="What is done to images in front of the model: preprocessor_config.json or timm's config.json, or "
        "package.module:object. By default what the model says of itself, or as for ImageNet."
    ),
]
Scale = Annotated[float | None, typer.Option(help="Of it: what pixels of 0 to 255 are multiplied by, e.g. 1.")]
Mean = Annotated[
    str | None, typer.Option(help="Of it: the mean that is subtracted then, per channel, e.g. 0.5,0.5,0.5.")
]
Std = Annotated[str | None, typer.Option(help="Of it: the deviation that is divided by then.")]
LayerFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--formats",
        help="Of layers by name, e.g. 'head*=float', 'conv1=4' (bits of weights), 'conv1=s4 per channel/u16 affine' (weights/"
        "activations); once per pattern. `graphopt show MODEL --layers` lists names.",
    ),
]
Estimator = Annotated[str, typer.Option(help="Value ranges by minmax, percentile, mse, entropy, aciq or output_mse.")]

PASSES_IN_PYTHON = re.compile(r"(?P<file>[^{]*\.py)(?::(?P<name>\w+))?|[\w.]+:[\w.]+")


def target(name: str) -> Target:
    """A target by its name, or an object of someone's own.

    Raises:
        InputError: there is none of this name, or the object is something else.
    """
    from graphopt.targets import Target, find
    from graphopt.utils import imports

    if ":" not in name:
        return find(name)
    found = imports.find(name)
    if not isinstance(found, Target):
        raise InputError(f"{name} is a {type(found).__name__}, not a Target")
    return found


def say_default_target(context: typer.Context) -> None:
    """Tell which machine was meant where the command named none."""
    from graphopt.targets import host

    source = context.get_parameter_source("target")
    if source is not None and source.name == "DEFAULT":
        here = host()
        machine = here.runtime.machine or here.runtime.architecture
        print(f"no --target was given: this is for the machine it ran on ({machine}); `graphopt targets` lists others")


def passes(text: str | None) -> Any:
    """What `optimize(passes=...)` takes: a text, that of a .txt file, or the function of target and data that a name or a file of
    Python stands for.

    Raises:
        InputError: there is none of this name, it cannot be read, or it is no function.
    """
    from graphopt.utils import imports

    if text is not None and text.endswith(".txt") and "," not in text:
        try:
            return " ".join(Path(text).expanduser().read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--passes {text} cannot be read: {getattr(error, 'strerror', error)}") from error
    if text is None or (form := PASSES_IN_PYTHON.fullmatch(text)) is None:
        return text
    found = imports.find_in_file(Path(form["file"]), form["name"] or "pipeline") if form["file"] else imports.find(text)
    if not callable(found):
        raise InputError(f"{text} is a {type(found).__name__}, not a function of target and data that returns passes")
    return found


def layer_formats(texts: list[str] | None, target: Target) -> dict[str, LayerFormat | None] | None:
    """`head*=float` -> {"head*": None}, `conv1=4` -> weights like the target's in 4 bits; None where none was given.

    Raises:
        InputError: a text is of another form, or there is no such format.
    """
    from graphopt.formats import parse, with_bits
    from graphopt.passes.quantization import LayerFormat

    found: dict[str, LayerFormat | None] = {}
    for text in texts or []:
        pattern, _, said = (part.strip() for part in text.rpartition("="))
        weights, _, activations = (part.strip() for part in said.partition("/"))
        if not pattern or not (weights or activations):
            raise InputError(f"--formats {text!r} is not of the form 'head*=float', 'conv1=4' or 'conv1=s4/u16 affine'")
        own = target.formats
        made = [
            with_bits(usual, int(name)) if name.isdecimal() else parse(name) if name else None
            for name, usual in ((weights, own.weights), (activations, own.activations))
            if said != "float"
        ]
        found[pattern] = LayerFormat(*made) if made else None
    return found or None


def judge(name: str | None) -> Any:
    """The function that `--evaluate` names.

    Raises:
        InputError: it cannot be found, or is none.
    """
    from graphopt.utils import imports

    found = None if name is None else imports.find(name)
    if found is not None and not callable(found):
        raise InputError(f"--evaluate {name} is a {type(found).__name__}, not a function that takes a model")
    return found


def limited(jobs: int | None) -> None:
    """Leave the other cores to others; None: all are used."""
    import torch

    if jobs is not None:
        torch.set_num_threads(jobs)


def seeded(seed: int) -> None:
    """Begin the random numbers of torch, NumPy and Python anew: a command gives the same twice."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def calibration(name: str | None, samples: int, images: Preprocessing | None) -> Named | None:
    """Where typical inputs come from, before anything is loaded; None where none were given."""
    from graphopt.data.loaders import Named

    return None if name is None else Named(name, images, samples)


def preprocessing(
    source: str | None,
    scale: float | None,
    mean: str | None,
    std: str | None,
    *,
    resize: str | None = None,
    **named: Any,
) -> Preprocessing | None:
    """What is done to images; None where no option says anything. Options count for more than `source`."""
    from dataclasses import replace

    from graphopt.data.preprocessing import Preprocessing
    from graphopt.data.preprocessing_sources import preprocessing_of
    from graphopt.utils import imports

    base = Preprocessing()
    if source is not None:
        path = Path(source).expanduser()
        base = preprocessing_of(path if path.exists() or ":" not in source else imports.find(source))
    changes: dict[str, Any] = {"scale": scale, **named}
    changes |= {k: None if v is None else _numbers(k, v) for k, v in (("mean", mean), ("std", std))}
    if resize is not None:
        edges = [int(n) for n in _numbers("resize", resize)]
        changes["resize"] = (edges * 2)[:2] if len(edges) == 1 else edges
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(base, **given) if given or source is not None else None


def prepared(source: Named | None, images: Preprocessing | None) -> Named | None:
    """Typical inputs, photos among them read in this way where the command does not say how."""
    from dataclasses import replace

    return source if source is None or source.preprocessing is not None else replace(source, preprocessing=images)


def labels(source: str | None) -> Any:
    """Names of classes, from a file (one a line, or JSON) or a Python object; None where none are named.

    JSON: a list, a dictionary by number, or a configuration that has one as `id2label`.
    """
    from graphopt.utils import imports, json_data

    if source is None:
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        if ":" not in source:
            raise InputError(f"there is no file {source} for --class-labels; give one, or package.module:function")
        found = imports.find(source)
        return found() if callable(found) else found
    try:
        if path.suffix != ".json":
            return path.read_text().splitlines()
        data = json_data.parse(path.read_bytes(), limit=2**27)
    except (OSError, ValueError) as error:
        raise InputError(f"--class-labels {path} cannot be read ({error}); write one name a line") from error
    return data.get("id2label", data) if isinstance(data, dict) else data


def examples(shapes: list[str] | None) -> tuple[Tensor, ...] | None:
    """An example of every input; None where no shape was given."""
    return tuple(_example(shape) for shape in shapes or []) or None


def model(name: str) -> Any:
    """The model a name stands for; modules are switched to eval mode, as only inference is deployed."""
    from torch import nn

    from graphopt.ir.graph import Graph
    from graphopt.utils import imports

    if ":" not in name:
        path = Path(name).expanduser()
        if path.suffix == ".pt2" and path.is_file():
            return Graph.load(path) if is_saved_graph(path) else path
        if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
            raise InputError(f"{name} holds weights without the model's code; give package.module:factory instead")
        raise InputError(f"there is no .pt2 file {name}; give one, or package.module:factory")
    found = imports.find(name)
    made = found if isinstance(found, nn.Module) or not callable(found) else found()
    return made.eval() if isinstance(made, nn.Module) else made


def is_saved_graph(path: Path) -> bool:
    """Whether a .pt2 file was written by `Graph.save` rather than `torch.export.save`; both are zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "graph.json" in archive.namelist()
    except Exception:  # of many kinds: whoever reads it says what is wrong with it
        return False  # the reader of exported programs explains what is wrong with it


def sizes(shapes: list[str] | None) -> list[tuple[int, ...]] | None:
    """The shape of every input; None where none was given."""
    return [tuple(_example(shape).shape) for shape in shapes or []] or None


def dynamic_shapes(texts: list[str] | None) -> dict[str, dict[int, str]] | None:
    """`image:2=height,3=width` -> {"image": {2: "height", 3: "width"}}; None where none was given."""
    found: dict[str, dict[int, str]] = {}
    for text in texts or []:
        name, _, sizes = text.partition(":")
        pairs = [size.partition("=") for size in sizes.split(",")]
        if not name or not all(
            number.strip().isdecimal() and label.strip().isidentifier() for number, _, label in pairs
        ):
            raise InputError(f"--dynamic-shape {text!r} is not of the form image:2=height,3=width")
        found[name] = {int(number): label.strip() for number, _, label in pairs}
    return found or None


def amounts(texts: list[str] | None) -> dict[str, float] | None:
    """`latency=0.4`, `bytes=200_000` -> {"latency": 0.4, "bytes": 200000.0}; None where none was given."""
    found = {}
    for text in texts or []:
        name, _, amount = text.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            raise InputError(f"--budget {text!r} is not of the form latency=0.4 or bytes=200000") from None
    return found or None


def _example(text: str) -> Tensor:
    """`1,3,224,224` -> random normal float32 of this shape; `1,128:int64` -> zeros and ones of this type."""
    import torch

    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    try:
        shape = [int(size) for size in sizes.replace("x", ",").split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise InputError(f"--input-shape {text!r} is not a shape; write e.g. 1,3,224,224 or 1,128:int64")
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(2, shape, generator=generator).to(dtype)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} {text!r} is not a list of numbers such as 0.5,0.5,0.5") from None
