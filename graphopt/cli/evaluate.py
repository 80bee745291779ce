"""`graphopt check` and `audit`: anyone's quantized model is judged. They exit with 1 where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import arguments
from graphopt.cli.arguments import Mean, Samples, Scale, Shapes, Std, Typical
from graphopt.cli.reporting import reporting


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
        from graphopt.utils import files

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
