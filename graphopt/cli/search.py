"""`graphopt search`: networks for several budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import arguments
from graphopt.cli.arguments import Aim, Model, Prepared, Samples, Shapes, Typical
from graphopt.cli.reporting import reporting


def search(
    model: Model,
    budget: Annotated[
        list[str],
        typer.Option(
            help="What a network may cost; once for each network: latency=0.4 (of float's time), ms=3, macs=0.5, bytes=200000, "
            "energy=0.3 (by a table), or several with commas between."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the networks; the same command goes on there when interrupted."),
    ],
    target: Aim = "host",
    calibration: Typical = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function that takes a model and returns its accuracy.")
    ] = None,
    input_shape: Shapes = None,
    samples: Samples = 512,
    preprocessing: Prepared = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime while it is measured.")] = 1,
    runtime: Annotated[str | None, typer.Option(help="Of the target host: onnxruntime or tvm.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="After which no new network is begun.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for what was found: a page (.html), plain text (.txt) or JSON (.json).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random numbers.")] = 0,
) -> None:
    """Find a network for each of several budgets, and say which are worth having."""
    with reporting():
        from graphopt.utils import printed

        found = arguments.target(target)
        budgets = [arguments.amounts(text.split(",")) or {} for text in budget]
        if report is not None:
            printed.check_place(report)
        images = arguments.preprocessing(preprocessing, None, None, None)
        judge = arguments.judge(evaluate)
        arguments.seeded(seed)
        example, subject = arguments.examples(input_shape), arguments.model(model)

        import graphopt

        results = graphopt.search(
            subject,
            example,
            budgets=budgets,
            target=found,
            calibration=arguments.calibration(calibration, samples, images),
            evaluate=judge,
            preprocessing=images,
            runtime=runtime,
            threads=threads,
            folder=out,
            seconds=seconds,
            seed=seed,
        )
        if report is not None:
            results.save(report)
        results.print()
        print(f"the best: {results.best.folder}")
