"""`graphopt check`, `audit` and `compare`: models are judged. The first two exit with 1 where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import arguments
from graphopt.cli.arguments import Judged, Mean, Prepared, Samples, Scale, Shapes, Std, Typical
from graphopt.cli.reporting import reporting


def check(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or the folder of a deployed model.")],
    target: Judged = "host",
) -> None:
    """List what in a quantized model breaks the rules of a target, with what to do; exit with 1 if there is any."""
    with reporting():
        import graphopt

        found = graphopt.check(model, arguments.target(target))
        for violation in found:
            typer.echo(str(violation))
        if not found:
            typer.echo(f"{model} obeys the rules of {target}")
    if found:
        raise typer.Exit(1)


def compare(
    first: Annotated[Path, typer.Argument(help="The folder of a deployed model.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model, the reference.")],
    calibration: Typical = None,
    samples: Samples = 64,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function that takes a model and returns its accuracy.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures as JSON.")] = None,
) -> None:
    """Put two deployed models side by side: size, time, answers, and the time of each layer."""
    with reporting():
        import graphopt
        from graphopt.utils import imports, printed

        if json is not None:
            printed.check_place(json)
        sides = [graphopt.load(path) for path in (first, second)]
        typical = arguments.prepared(arguments.calibration(calibration, samples, None), sides[1].preprocessing)
        judge = None if evaluate is None else imports.find(evaluate)
        found = graphopt.compare(*sides, calibration=typical, evaluate=judge)
        if json is not None:
            found.save(json)
        found.print()


def audit(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or the folder of a deployed model.")],
    target: Judged = "host",
    fix: Annotated[
        Path | None, typer.Option(help="Write a file with the same answers that computes more of them in integer.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="--fix may replace the audited file.")] = False,
    input_shape: Shapes = None,
    calibration: Typical = None,
    samples: Samples = 64,
    preprocessing: Prepared = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    measure: Annotated[bool, typer.Option(help="Measure the latency before and after the fix.")] = True,
    json: Annotated[Path | None, typer.Option(help="File for the audit, or the fix, as JSON.")] = None,
) -> None:
    """Report what of anyone's ONNX file computes in integer, what in float, and why; exit with 1 if anything does in float."""
    with reporting():
        import graphopt
        from graphopt.utils import files, printed

        if json is not None:
            printed.check_place(json)
        if fix is not None:
            files.check_file(fix)
        images = arguments.preprocessing(preprocessing, scale, mean, std)
        typical = arguments.calibration(calibration, samples, images)
        if typical is not None and model.is_dir():
            from graphopt.artifacts.manifest import read_manifest

            typical = arguments.prepared(typical, read_manifest(model).preprocessing)
        found = graphopt.audit(model, arguments.target(target), shapes=arguments.sizes(input_shape))
        found.print()
        fixed = None
        if fix is not None:
            fixed = found.fix(fix, calibration=typical, measure=measure, overwrite=overwrite)
            fixed.print()
        left = found if fixed is None else fixed.after
        if json is not None:
            (fixed or found).save(json)
    if left.float_regions:
        raise typer.Exit(1)
