"""The command line: `graphopt optimize`, `targets`, `show` and `demo`.

Exit codes: 0 all is well, 1 something graphopt or the model could not do, 2 a mistake in the command, 130 Ctrl-C.
Errors are one line on standard error; `--debug` shows where they come from.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.errors import GraphoptError, InputError

# PyTorch is imported where a command needs it: `graphopt --help` answers at once.
if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_debug = False


def main() -> None:
    """The entry point; `--debug` may stand anywhere."""
    global _debug
    _debug = "--debug" in sys.argv
    app(args=[a for a in sys.argv[1:] if a != "--debug"], prog_name="graphopt")


def _version(wanted: bool) -> None:
    if wanted:
        from graphopt.version import versions

        ours, *others = (f"{name} {version}" for name, version in versions().items())
        print(f"{ours} ({', '.join(others)})")
        raise typer.Exit


@app.callback()
def graphopt(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make trained PyTorch models small and fast on edge hardware."""


@app.command()
def optimize(
    model: Annotated[str, typer.Argument(help="package.module:factory, or the path of a .pt2 file.")],
    target: Annotated[str, typer.Option(help="What to optimize for; see `graphopt targets`.")] = "arm",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the deployed model.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Typical inputs: .npz[:name], .npy, a folder of images, or package.module:function."),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function that takes a model and returns its accuracy.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of an example input, e.g. 1,3,224,224 or 1,128:int64; once per input."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples to take at most, evenly spread.")] = 512,
    scale: Annotated[float, typer.Option(help="What raw pixels are multiplied by first.", show_default="1/255")] = 1
    / 255,
    mean: Annotated[str, typer.Option(help="Then the mean that is subtracted, per channel.")] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Then the deviation that is divided by.")] = "0.229,0.224,0.225",
    keep_macs: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Shrink the network until this share of the multiply-accumulates is left, e.g. 0.6."
        ),
    ] = None,
    shrink_by: Annotated[str, typer.Option(help="How: prune (channels) or factorize (layers).")] = "prune",
    max_latency: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Factorize layers until this share of the measured time is left, e.g. 0.8."),
    ] = None,
    estimator: Annotated[str, typer.Option(help="How value ranges are chosen during calibration.")] = "mse",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime while it is measured.")] = 1,
    measure: Annotated[bool, typer.Option(help="Measure the latency before and after.")] = True,
    dump: Annotated[Path | None, typer.Option(help="Folder for the text of the graph after every pass.")] = None,
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
) -> None:
    """Optimize a model, and report what every step bought."""
    with reporting():
        from graphopt import files, imports, targets
        from graphopt.loaders import Named, Pixels

        found = targets.find(target)
        if out is not None:
            files.check_replaceable(out)
        if report is not None:
            files.check_writable(report)
        source = None
        if calibration is not None:
            pixels = Pixels(scale, _numbers("mean", mean), _numbers("std", std))
            source = Named(calibration, pixels, samples)
        judge = None if evaluate is None else imports.find(evaluate)
        if judge is not None and not callable(judge):
            raise InputError(f"--evaluate {evaluate} is a {type(judge).__name__}, not a function that takes a model")
        example = tuple(_example(shape) for shape in input_shape or []) or None
        subject = _model(model)

        import graphopt

        optimized = graphopt.optimize(
            subject,
            example,
            target=found,
            calibration=source,
            evaluate=judge,
            dump=dump,
            estimator=estimator,
            keep_macs=keep_macs,
            shrink_by=shrink_by,
            max_latency=max_latency,
            measure=measure,
            threads=threads,
        )
        if out is not None:
            out = optimized.artifact.save(out)
        if report is not None:
            optimized.report.save(report)
        optimized.report.print()
        if out is not None:
            print(f"saved to {out}")


@app.command()
def targets() -> None:
    """List the targets."""
    with reporting():
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table

        from graphopt import targets

        table = Table(box=SIMPLE, pad_edge=False)
        for column in ("target", "runtime", "weights", "activations", "description"):
            table.add_column(column)
        for name in targets.names():
            t = targets.find(name)
            table.add_row(name, t.runtime, str(t.weights), str(t.activations), t.description)
        console = Console()
        console = console if console.is_terminal else Console(width=140)
        console.print(table)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A .pt2 file, or the folder of a deployed model.")]) -> None:
    """Show the graph of a .pt2 file, or a deployed model."""
    with reporting():
        if not path.exists():
            raise InputError(f"there is no file or folder {path}")
        if path.is_dir():
            _show_artifact(path)
        elif path.suffix == ".pt2":
            from graphopt.graph import Graph

            print(Graph.load(path) if _is_saved_graph(path) else Graph.capture(path))
        else:
            raise InputError(f"cannot show {path}: it is neither a .pt2 file nor the folder of a deployed model")


@app.command()
def demo(
    target: Annotated[str, typer.Option(help="What to optimize for.")] = "host",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the deployed model.")] = None,
) -> None:
    """Train a small network and optimize it for this machine.

    It learns handwritten digits in seconds; all together takes less than a minute.
    """
    with reporting():
        from graphopt import files
        from graphopt.demo.main import run

        if out is not None:
            files.check_replaceable(out)
        run(target, out).print()
        if out is not None:
            print(f"saved to {out.resolve()}")


@contextmanager
def reporting() -> Iterator[None]:
    """Turn errors into one line and an exit code."""
    if not _debug:
        _quieten()
    try:
        yield
        sys.stdout.flush()
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _say("interrupted; no result was written")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if _debug:
            raise
        text = " ".join(str(error).split()) or "no message"
        ours = isinstance(error, GraphoptError)
        _say(f"error: {text}" if ours else f"unexpected {type(error).__name__}: {text} (--debug shows where)")
        raise typer.Exit(1) from error


def _say(text: str) -> None:
    print(f"graphopt: {text}", file=sys.stderr)


def _quieten() -> None:
    """Warnings of libraries about themselves are nothing the user of a command can act on."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _model(name: str) -> Any:
    """The model a name stands for; modules are switched to eval mode, as only inference is deployed."""
    from torch import nn

    from graphopt import imports
    from graphopt.graph import Graph

    if ":" not in name:
        path = Path(name).expanduser()
        if path.suffix == ".pt2" and path.is_file():
            return Graph.load(path) if _is_saved_graph(path) else path
        if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
            raise InputError(f"{name} holds weights without the model's code; give package.module:factory instead")
        raise InputError(f"there is no .pt2 file {name}; give one, or package.module:factory")
    found = imports.find(name)
    model = found if isinstance(found, nn.Module) or not callable(found) else found()
    return model.eval() if isinstance(model, nn.Module) else model


def _is_saved_graph(path: Path) -> bool:
    """Whether a .pt2 file was written by `Graph.save` rather than `torch.export.save`; both are zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "graph.json" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # the reader of exported programs explains what is wrong with it


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


def _show_artifact(folder: Path) -> None:
    from graphopt.manifest import read_manifest
    from graphopt.report import Report, size

    manifest = read_manifest(folder)
    print(f"{manifest.model} for {manifest.target.get('name')}, to run on {manifest.runtime}")
    print(f"takes    {', '.join(map(str, manifest.inputs))}")
    print(f"returns  {', '.join(map(str, manifest.outputs))}")
    for name, entry in manifest.files.items():
        print(f"file     {name}, {size(entry.size)}")
    print(f"made by  {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    if manifest.report:
        print()
        Report.from_dict(manifest.report).print()
