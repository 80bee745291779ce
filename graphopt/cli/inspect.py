"""`graphopt analyze`, `targets`, `passes`, `show`, `profile` and `doctor`: what there is, explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli import arguments, completion
from graphopt.cli.arguments import Aim, Estimator, Mean, Model, Prepared, Samples, Scale, Shapes, Std, Typical
from graphopt.cli.reporting import reporting
from graphopt.utils.errors import InputError

if TYPE_CHECKING:
    from graphopt.artifacts.network import Call
    from graphopt.ir.graph import Graph
    from graphopt.passes import Described


def analyze(
    context: typer.Context,
    model: Model,
    target: Aim = "host",
    calibration: Typical = None,
    input_shape: Shapes = None,
    samples: Samples = 512,
    preprocessing: Prepared = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    estimator: Estimator = "mse",
    plots: Annotated[
        Path | None,
        typer.Option(help="Folder for plots of layers and of every activation and weight; needs matplotlib."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the numbers as JSON.")] = None,
) -> None:
    """Quantize a model, and report which layers and activations lose accuracy."""
    with reporting():
        from graphopt.utils import printed

        found = arguments.target(target)
        if plots is not None:
            from graphopt.evaluation.plots import check

            check(plots)
        if json is not None:
            printed.check_place(json)
        images = arguments.preprocessing(preprocessing, scale, mean, std)
        source = arguments.calibration(calibration, samples, images)
        example, subject = arguments.examples(input_shape), arguments.model(model)

        import graphopt

        optimized = graphopt.optimize(
            subject, example, target=found, calibration=source, estimator=estimator, measure=False
        )
        analysis = graphopt.analyze(optimized.graph, arguments.prepared(source, optimized.artifact.preprocessing))
        if json is not None:
            analysis.save(json)
        written = analysis.plot(plots) if plots is not None else []
        analysis.print()
        arguments.say_default_target(context)
        if plots is not None:
            print(f"{len(written)} plots in {plots.resolve()}")


def targets(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, or package.module:TARGET, in full.", autocompletion=completion.targets),
    ] = None,
) -> None:
    """List the targets, or explain one."""
    with reporting():
        from graphopt import targets
        from graphopt.utils import terminal
        from graphopt.utils.tables import Column, Table

        if name is not None:
            for fact, text in targets.explain(arguments.target(name)):
                typer.echo(f"{fact:<16} {text}")
            return
        columns = [Column(name) for name in ("target", "runtime", "weights", "activations", "description")]
        found = [(known, targets.find(known)) for known in targets.names()]
        rows = [
            [known, t.runtime.name, str(t.formats.weights), str(t.formats.activations), t.description]
            for known, t in found
        ]
        terminal.show([Table(columns, rows)], 140)


def passes(
    name: Annotated[str | None, typer.Argument(help="One of them, in full.", autocompletion=completion.passes)] = None,
) -> None:
    """List the passes that --passes knows, or explain one of them."""
    with reporting():
        from graphopt import passes as known
        from graphopt.utils import terminal
        from graphopt.utils.tables import Column, Table

        own = known.described()
        if name is not None:
            about = own[name] if name in own else _described(name)
            print("\n\n".join([f"{name}: {', '.join(about.options) or 'no options'}", *about.texts]))
            return
        rows = [[each, ", ".join((own[each] if each in own else _described(each)).options)] for each in known.names()]
        terminal.show([Table([Column("pass"), Column("options")], rows)], 120)


def _described(name: str) -> Described:
    """What a pass of an installed package says of itself, which is imported for that."""
    from inspect import getdoc, getmodule

    from graphopt.passes import Described, find

    kind = find(name)

    from graphopt.compiler.pipeline import options

    return Described(options(kind), [text for text in (getdoc(getmodule(kind)), getdoc(kind)) if text])


def show(
    model: Annotated[
        str, typer.Argument(help="package.module:factory, a .pt2 file, or the folder of a deployed model.")
    ],
    usage: Annotated[
        bool, typer.Option("--usage", help="Of a deployed model: a program that runs it without graphopt.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="A table of its layers, by the names that options take, in place of the text."),
    ] = False,
    svg: Annotated[Path | None, typer.Option(help="File for a drawing of the graph, in place of the text.")] = None,
    input_shape: Shapes = None,
) -> None:
    """Show the graph of a model, or what a deployed one is."""
    with reporting():
        from graphopt.utils import files

        folder = Path(model).expanduser()
        deployed = folder.is_dir()
        if not deployed and usage:
            raise InputError(f"--usage is of a deployed model, and {model} is no folder of one")
        if input_shape is not None and ":" not in model:
            raise InputError(f"--input-shape is for package.module:factory; {model} has its shapes already")
        if svg is not None:
            files.check_file(svg)
            _draw(svg, _network(model, input_shape), model)
        elif layers:
            _list(_network(model, input_shape))
        elif usage:
            import graphopt

            typer.echo(graphopt.load(folder).usage(folder), nl=False)
        elif deployed:
            _show_artifact(folder)
        else:
            print(_graph(model, input_shape))


def _graph(name: str, shapes: list[str] | None) -> Graph:
    """The captured graph of whatever a name stands for."""
    from torch import nn

    from graphopt.frontend.infer_inputs import infer
    from graphopt.ir.graph import Graph

    if ":" not in name:
        path = Path(name).expanduser()
        if not path.exists():
            raise InputError(f"there is no file or folder {name}; give one, or package.module:factory")
        if path.suffix != ".pt2":
            raise InputError(f"cannot show {name}: it is neither a .pt2 file nor the folder of a deployed model")
        return Graph.load(path) if arguments.is_saved_graph(path) else Graph.capture(path)
    model, example = arguments.model(name), arguments.examples(shapes)
    if isinstance(model, Graph):
        return model
    if example is None and isinstance(model, nn.Module):
        guess = infer(model)
        return Graph.capture(model, guess.args, guess.kwargs)
    return Graph.capture(model, example or ())


def _network(name: str, shapes: list[str] | None) -> list[Call]:
    """The calls of a graph, or those in the report of a deployed model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        from graphopt.artifacts.manifest import read_manifest
        from graphopt.artifacts.report import Report

        manifest = read_manifest(folder)
        if found := Report.from_dict(manifest.report).network if manifest.report else []:
            return found
        raise InputError(f"{name} has no report with its network; show the graph that it was made of")
    from graphopt.evaluation.network import network

    return network(_graph(name, shapes))


def _list(calls: list[Call]) -> None:
    from graphopt.artifacts.network import WORDS
    from graphopt.utils import terminal
    from graphopt.utils.quantities import count
    from graphopt.utils.tables import Column, Table, numbers

    rows = []
    for call in calls:
        shape = " x ".join("N" if size is None else str(size) for size in call.shape)
        how = WORDS[call.arithmetic] if call.operator != "input" else ""
        rows.append([call.name, call.operator, shape, call.bits, how, count(call.macs) if call.macs else ""])
    columns = [Column(name) for name in ("layer", "operator", "result", "bits", "computes in")]
    terminal.show([Table([*columns, *numbers("MACs")], rows)], 140)


def _draw(svg: Path, calls: list[Call], name: str) -> None:
    """Draw a graph, or the network of the report in a deployed model."""
    from graphopt.artifacts.drawing import draw
    from graphopt.utils import files

    files.write_atomically(svg, draw(calls, label=Path(name).name).encode())
    print(f"drawn in {svg}")


def profile(
    path: Annotated[Path, typer.Argument(help="The folder of a deployed model.")],
    threads: Annotated[int, typer.Option(min=1, help="Of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Of which the figures are medians.")] = 20,
    json: Annotated[Path | None, typer.Option(help="File for all figures as JSON.")] = None,
) -> None:
    """Show what each kernel of a deployed model takes on this machine."""
    with reporting():
        import graphopt
        from graphopt.utils import printed

        if json is not None:
            printed.check_place(json)
        artifact = graphopt.load(path)
        artifact.set_threads(threads)
        found = artifact.profile(**artifact.zeros(), runs=runs)
        if json is not None:
            found.save(json)
        found.print()


def doctor(json: Annotated[Path | None, typer.Option(help="File for what was found as JSON.")] = None) -> None:
    """Say what this machine can do, and how to get the rest."""
    with reporting():
        from graphopt.compiler.doctor import examine
        from graphopt.utils import printed

        if json is not None:
            printed.check_place(json)
        found = examine()
        if json is not None:
            found.save(json)
        found.print()


def _show_artifact(folder: Path) -> None:
    from graphopt.artifacts.manifest import read_manifest
    from graphopt.artifacts.report import Report
    from graphopt.artifacts.staged import stage_lines
    from graphopt.utils.quantities import size

    manifest = read_manifest(folder)
    print(f"{manifest.model} for {manifest.target.get('name')}, to run on {manifest.runtime}")
    print(f"takes    {', '.join(map(str, manifest.inputs))}")
    print(f"returns  {', '.join(map(str, manifest.outputs))}")
    if manifest.preprocessing is not None:
        print(f"images   {manifest.preprocessing}")
    if manifest.labels:
        print(f"classes  {', '.join(map(repr, manifest.labels[:5]))}{', ...' if len(manifest.labels) > 5 else ''}")
    for line in stage_lines(manifest):
        print(line)
    for name, entry in manifest.files.items():
        print(f"file     {name}, {size(entry.size)}")
    print(f"made by  {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    if manifest.report:
        print()
        Report.from_dict(manifest.report).print()
