"""What commands take and share: the options of models and their data, and how their text is read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.utils.errors import InputError

# PyTorch is imported where a command needs it: `graphopt --help` answers at once.
if TYPE_CHECKING:
    from torch import Tensor

    from graphopt.data.loaders import Named

Model = Annotated[str, typer.Argument(help="package.module:factory, or the path of a .pt2 file.")]
Aim = Annotated[str, typer.Option(help="What to optimize for; see `graphopt targets`.")]
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
Scale = Annotated[float, typer.Option(help="What raw pixels are multiplied by first.", show_default="1/255")]
Mean = Annotated[str, typer.Option(help="Then the mean that is subtracted, per channel.")]
Std = Annotated[str, typer.Option(help="Then the deviation that is divided by.")]
Estimator = Annotated[str, typer.Option(help="Value ranges by minmax, percentile, mse, entropy, aciq or output_mse.")]


def calibration(name: str | None, samples: int, scale: float, mean: str, std: str) -> Named | None:
    """Where typical inputs come from, before anything is loaded; None where none were given."""
    from graphopt.data.loaders import Named, Pixels

    if name is None:
        return None
    return Named(name, Pixels(scale, _numbers("mean", mean), _numbers("std", std)), samples)


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
