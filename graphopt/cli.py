"""The command line: `graphopt optimize`, `analyze`, `targets`, `check`, `audit`, `compile`, `show` and `demo`.

Exit codes: 0 all is well, 1 something graphopt or the model could not do, 2 a mistake in the command, 130 Ctrl-C.
Errors are one line on standard error; `--debug` shows where they come from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from graphopt import arguments
from graphopt.arguments import Aim, Estimator, Mean, Model, Samples, Scale, Shapes, Std, Typical
from graphopt.errors import GraphoptError, InputError

# PyTorch is imported where a command needs it: `graphopt --help` answers at once.
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
    model: Model,
    target: Aim = "arm",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the deployed model.")] = None,
    calibration: Typical = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function that takes a model and returns its accuracy.")
    ] = None,
    input_shape: Shapes = None,
    samples: Samples = 512,
    scale: Scale = 1 / 255,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
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
    rounding: Annotated[
        str | None,
        typer.Option(help="Codes of weights: nearest, gptq or adaround. By default gptq for less than 7 bits."),
    ] = None,
    average_bits: Annotated[
        float | None, typer.Option(help="Bits per weight on average, e.g. 4; how many each layer has is chosen.")
    ] = None,
    weight_only: Annotated[
        int | None, typer.Option(help="Bits of the weights of linear layers, all else in float (transformers): 4 or 8.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to go on from where the same command was interrupted.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, help="The accuracy that may be lost, in the unit of --evaluate: tries more until it is kept."
        ),
    ] = None,
    estimator: Estimator = "mse",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime while it is measured.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to measure: rpc://host:port (rpc_server) or tracker://host:port/key for a tvm- target; htp for hexagon."
        ),
    ] = None,
    compiler: Annotated[
        str | None, typer.Option(help="What links for a tvm- target, e.g. 'zig c++ -target aarch64-linux-gnu'.")
    ] = None,
    tune: Annotated[
        str | None, typer.Option(help="Measure kernels for a tvm- target on this machine: trials, or seconds as 60s.")
    ] = None,
    tune_database: Annotated[
        Path | None, typer.Option(help="File that remembers what tuning measured, to go on from.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure the latency before and after.")] = True,
    dump: Annotated[Path | None, typer.Option(help="Folder for the text of the graph after every pass.")] = None,
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
) -> None:
    """Optimize a model, and report what every step bought."""
    with reporting():
        from graphopt import files, imports, targets

        found = targets.find(target)
        if compiler is not None:
            found = replace(found, compiler=compiler)
        if out is not None:
            files.check_replaceable(out)
        if report is not None:
            files.check_writable(report)
        source = arguments.calibration(calibration, samples, scale, mean, std)
        judge = None if evaluate is None else imports.find(evaluate)
        if judge is not None and not callable(judge):
            raise InputError(f"--evaluate {evaluate} is a {type(judge).__name__}, not a function that takes a model")
        example, subject = arguments.examples(input_shape), arguments.model(model)

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
            rounding=cast("Any", rounding),  # checked there
            average_bits=average_bits,
            weight_only=weight_only,
            checkpoint=checkpoint,
            max_drop=max_drop,
            tune=tune,
            tune_database=tune_database,
            measure=measure,
            threads=threads,
            device=device,
        )
        if out is not None:
            out = optimized.artifact.save(out)
        if report is not None:
            optimized.report.save(report)
        optimized.report.print()
        if out is not None:
            print(f"saved to {out}")


@app.command()
def analyze(
    model: Model,
    target: Aim = "arm",
    calibration: Typical = None,
    input_shape: Shapes = None,
    samples: Samples = 512,
    scale: Scale = 1 / 255,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    estimator: Estimator = "mse",
    plots: Annotated[
        Path | None, typer.Option(help="Folder for plots of layers and of every value and weight; needs matplotlib.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the numbers as JSON.")] = None,
) -> None:
    """Quantize a model, and report which layers and values lose accuracy."""
    with reporting():
        from graphopt import files, targets

        found = targets.find(target)
        if plots is not None:
            from graphopt.plots import check

            check(plots)
        if json is not None:
            files.check_writable(json)
        source = arguments.calibration(calibration, samples, scale, mean, std)
        example, subject = arguments.examples(input_shape), arguments.model(model)

        import graphopt

        optimized = graphopt.optimize(
            subject, example, target=found, calibration=source, estimator=estimator, measure=False
        )
        analysis = graphopt.analyze(optimized.graph, source)
        if json is not None:
            analysis.save(json)
        written = analysis.plot(plots) if plots is not None else []
        analysis.print()
        if plots is not None:
            print(f"{len(written)} plots in {plots.resolve()}")


@app.command()
def targets(name: Annotated[str | None, typer.Argument(help="One of them, in full.")] = None) -> None:
    """List the targets, or explain one."""
    with reporting():
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table

        from graphopt import targets

        if name is not None:
            for fact, text in targets.explain(targets.find(name)):
                typer.echo(f"{fact:<16} {text}")
            return
        table = Table(box=SIMPLE, pad_edge=False)
        for column in ("target", "runtime", "weights", "activations", "description"):
            table.add_column(column)
        for known in targets.names():
            t = targets.find(known)
            table.add_row(known, t.runtime, str(t.weights), str(t.activations), t.description)
        console = Console()
        console = console if console.is_terminal else Console(width=140)
        console.print(table)


@app.command()
def compile(
    artifact: Annotated[
        Path, typer.Argument(help="The folder of a model deployed for hexagon, or for a CPU through TVM (tvm-...).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the binaries, or for C and objects.")],
    architecture: Annotated[
        list[str] | None, typer.Option(help="Of Hexagon, e.g. v73; once per architecture. All known if not given.")
    ] = None,
    name: Annotated[str, typer.Option(help="What names of functions and files in C begin with.")] = "model",
) -> None:
    """Compile a deployed model to binaries that a Hexagon DSP loads as they are, or to C and objects that need no runtime."""
    with reporting():
        import graphopt

        written = graphopt.load(artifact).compile(out, architecture or (), name=name)
        print(f"saved to {written}: {', '.join(sorted(file.name for file in written.iterdir()))}")


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or the folder of a deployed model.")],
    target: Annotated[str, typer.Option(help="A target; `graphopt targets` lists them.")] = "arm",
) -> None:
    """List what in a quantized model breaks the rules of a target, with what to do; exit with 1 if there is any."""
    with reporting():
        import graphopt

        found = graphopt.check(model, target)
        for violation in found:
            typer.echo(str(violation))
        if not found:
            typer.echo(f"{model} obeys the rules of {target}")
    if found:
        raise typer.Exit(1)


@app.command()
def audit(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or the folder of a deployed model.")],
    target: Annotated[str, typer.Option(help="A target; `graphopt targets` lists them.")] = "host",
    cure: Annotated[
        Path | None, typer.Option(help="Write a file with the same answers that computes more of them in integer.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="--cure may replace the audited file.")] = False,
    input_shape: Shapes = None,
    calibration: Typical = None,
    samples: Samples = 64,
    scale: Scale = 1 / 255,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    measure: Annotated[bool, typer.Option(help="Measure the latency before and after the cure.")] = True,
    json: Annotated[Path | None, typer.Option(help="File for the audit, or the cure, as JSON.")] = None,
) -> None:
    """Report what of anyone's ONNX file computes in integer, what in float, and why; exit with 1 if anything does in float."""
    with reporting():
        import graphopt
        from graphopt import files

        if json is not None:
            files.check_writable(json)
        if cure is not None:
            files.check_writable(cure)
        typical = arguments.calibration(calibration, samples, scale, mean, std)
        found = graphopt.audit(model, target, shapes=arguments.sizes(input_shape))
        found.print()
        cured = None
        if cure is not None:
            cured = found.cure(cure, calibration=typical, measure=measure, overwrite=overwrite)
            cured.print()
        left = found if cured is None else cured.after
        if json is not None:
            (cured or found).save(json)
    if left.islands:
        raise typer.Exit(1)


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

            print(Graph.load(path) if arguments.is_saved_graph(path) else Graph.capture(path))
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
