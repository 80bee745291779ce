"""`graphopt optimize`, `run`, `compile` and `demo`: deployed models are made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from graphopt.cli import arguments, completion
from graphopt.cli.arguments import (
    Aim,
    Estimator,
    Free,
    LayerFormats,
    Mean,
    Model,
    Prepared,
    Samples,
    Scale,
    Shapes,
    Std,
    Typical,
)
from graphopt.cli.config import Config, SaveConfig, save
from graphopt.cli.reporting import reporting
from graphopt.utils.errors import GraphoptError, InputError

if TYPE_CHECKING:
    from graphopt.artifacts.artifact import Artifact
    from graphopt.artifacts.report import Report


def optimize(
    context: typer.Context,
    model: Model,
    target: Aim = "host",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the deployed model.")] = None,
    calibration: Typical = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function that takes a model and returns its accuracy.")
    ] = None,
    input_shape: Shapes = None,
    dynamic_shape: Free = None,
    samples: Samples = 512,
    preprocessing: Prepared = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    resize: Annotated[
        str | None,
        typer.Option(help="Of it: the shorter side that images get before their centre is cropped, or both."),
    ] = None,
    interpolation: Annotated[str | None, typer.Option(help="Of it: bilinear, bicubic, ... as Pillow has them.")] = None,
    color: Annotated[str | None, typer.Option(help="Of it: RGB, BGR or L (grey).")] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="uint8: the artifact takes pixels, and what preprocessing multiplies and subtracts is in it.",
        ),
    ] = None,
    class_labels: Annotated[
        str | None,
        typer.Option(help="Names of classes: a file with one a line, JSON (id2label), or package.module:object."),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            help="In place of the recipe, e.g. 'fold-batch-norm, prune{keep_ratio=0.6}, quantize' (see `graphopt passes`), or a "
            "file.txt of such a text, or a function of target and data that returns passes: package.module:function, or a "
            "file.py with a `pipeline`.",
            autocompletion=completion.passes,
        ),
    ] = None,
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
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="What the result may cost, repeated for several: latency=0.4 (of float's time), ms=3, macs=0.5, bytes=200000 or "
            "energy=0.3 (by a table). Channels, ranks and formats of layers and residual blocks are chosen together for it."
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(help="Codes of weights: nearest, gptq or adaround. By default gptq for less than 7 bits."),
    ] = None,
    average_bits: Annotated[
        float | None, typer.Option(help="Bits per weight on average, e.g. 4; how many each layer has is chosen.")
    ] = None,
    formats: LayerFormats = None,
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
    train: Annotated[
        str | None,
        typer.Option(
            help="Training data: .npz[:name], .npy or a folder of images, without labels; or package.module:function, which "
            "returns what graphopt.train takes. What is quantized is trained, with the original as teacher."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Over the training data.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of training, where the data are tensors.")] = 64,
    rate: Annotated[float | None, typer.Option(help="The highest learning rate; 0.001 by default.")] = None,
    quantizers: Annotated[
        str, typer.Option(help="How quantizers train: lsq, or ste, lsq+, pact, dsq, quantization_networks, ...")
    ] = "lsq",
    training_checkpoint: Annotated[
        Path | None, typer.Option(help="Folder where training goes on after an interruption.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Store files entropy-coded: huffman, ans, or entropy, whichever is smaller; `load` restores them."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime while it is measured.")] = 1,
    runtime: Annotated[
        str | None, typer.Option(help="Of the target host: onnxruntime or tvm. By default the one that is faster here.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to measure: rpc://host:port or tracker://host:port/key (tvm-), htp (hexagon), tensorrt (nvidia)."
        ),
    ] = None,
    compiler: Annotated[
        str | None, typer.Option(help="What links for a tvm- target, e.g. 'zig c++ -target aarch64-linux-gnu'.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="Measure kernels for a tvm- target, on --device where named: trials, or seconds as 60s."),
    ] = None,
    tune_database: Annotated[
        Path | None,
        typer.Option(help="File that remembers what tuning measured: to go on from, or, without --tune, to use."),
    ] = None,
    tuner: Annotated[
        str | None, typer.Option(help="What --tune tries: tiles of registers, or whole schedules by metaschedule.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure the latency before and after.")] = True,
    timings: Annotated[
        bool, typer.Option("--timings", help="Print the seconds of each stage, and of its parts.")
    ] = False,
    dump: Annotated[Path | None, typer.Option(help="Folder for the text of the graph after every pass.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of results: where the same was asked before, it is taken from there.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processor cores that the work itself may use; --threads are the measured runtime's."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for the report: a page (.html), plain text (.txt) or JSON (.json).")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure what each layer takes, for --report; on this machine.")
    ] = False,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Measure what quantizing each layer costs, for --report.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(help="Of random numbers: a model's own weights, inputs that are made up, rounding by gradients."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    config: Config = None,
    save_config: SaveConfig = None,
) -> None:
    """Optimize a model, and report what every step bought."""
    with reporting():
        from graphopt.utils import files, printed

        if save_config is not None:
            save(context, save_config)
        found = arguments.target(target)
        if compiler is not None:
            found = found.replace(compiler=compiler)
        if out is not None:
            files.check_replaceable(out)
        if report is not None:
            printed.check_place(report)
        elif profile or analyze:
            raise InputError("--profile and --analyze are for the report; name a file for it, --report report.html")
        images = arguments.preprocessing(
            preprocessing, scale, mean, std, resize=resize, interpolation=interpolation, color=color
        )
        chosen, layer_formats = arguments.passes(passes), arguments.layer_formats(formats, found)
        source, labels = arguments.calibration(calibration, samples, images), arguments.labels(class_labels)
        judge = arguments.judge(evaluate)
        arguments.seeded(seed)
        arguments.limited(jobs)
        example, subject = arguments.examples(input_shape), arguments.model(model)

        import graphopt

        optimized = graphopt.optimize(
            subject,
            example,
            target=found,
            calibration=source,
            evaluate=judge,
            preprocessing=images,
            input=cast("Any", pixels),  # checked there
            class_labels=labels,
            passes=chosen,
            dump=dump,
            cache=cache,
            dynamic_shapes=arguments.dynamic_shapes(dynamic_shape),
            estimator=estimator,
            keep_macs=keep_macs,
            shrink_by=cast("Any", shrink_by),
            max_latency=max_latency,
            budget=arguments.amounts(budget),
            rounding=cast("Any", rounding),  # checked there
            average_bits=average_bits,
            formats=layer_formats,
            weight_only=weight_only,
            checkpoint=checkpoint,
            max_drop=max_drop,
            train=train,
            epochs=epochs,
            batch_size=batch_size,
            rate=rate,
            quantizers=quantizers,
            training_checkpoint=training_checkpoint,
            storage=cast("Any", storage),  # checked there
            tune=tune,
            tune_database=tune_database,
            tuner=tuner,
            measure=measure,
            threads=threads,
            runtime=runtime,
            device=device,
        )
        if out is not None:
            out = optimized.artifact.save(out)
        if profile:
            _include_profile(optimized.report, optimized.artifact)
        if analyze:
            typical = arguments.prepared(source, optimized.artifact.preprocessing)
            optimized.report.include(graphopt.analyze(optimized.graph, typical))
        if report is not None:
            optimized.report.save(report)
        if quiet:
            return
        optimized.report.print()
        arguments.say_default_target(context)
        if timings:
            optimized.report.timings.print()
        if out is not None:
            print(f"saved to {out}")


def _include_profile(report: Report, artifact: Artifact) -> None:
    try:
        report.include(artifact.profile(**artifact.zeros(), runs=20))
    except GraphoptError as error:  # found out behind all of the work: that is kept
        report.notes.append(f"what each layer takes was not measured: {error}")


def run(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(help="Options of `graphopt optimize` in a .yaml file, or passes in a .py file.", metavar="FILE"),
    ],
) -> None:
    """Run a file of options or passes: `run FILE [OPTIONS]`, with the options of `graphopt optimize`.

    job.yaml is what `optimize --config` takes, its passes included. pipeline.py defines pipeline(target, data), which returns a
    list of passes; the model is named behind it. The file is run as Python: give one that you trust.
    """
    with reporting():
        how = {".yaml": "--config", ".yml": "--config", ".py": "--passes"}.get(file.suffix)
        if how is None:
            raise InputError(
                f"{file} is neither a .yaml file of options nor a .py file that defines pipeline(target, data)"
            )
        if not file.is_file():
            raise InputError(f"there is no file {file}")
    assert context.parent is not None
    command = cast("Any", context.parent.command).commands["optimize"]
    with command.make_context("run", [*context.args, how, str(file)], parent=context.parent) as inner:
        command.invoke(inner)


def compile(
    artifact: Annotated[
        Path,
        typer.Argument(
            help="The folder of a model deployed for hexagon, or for a CPU through TVM (tvm-...); of stages, too."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the binaries, or for C and objects.")],
    architecture: Annotated[
        list[str] | None, typer.Option(help="Of Hexagon, e.g. v73; once per architecture. All known if not given.")
    ] = None,
    name: Annotated[str, typer.Option(help="What names of functions and files in C begin with.")] = "model",
    ram: Annotated[
        str | None, typer.Option(help="Memory that C may work in, e.g. 64K; what does not fit is said.")
    ] = None,
    flash: Annotated[str | None, typer.Option(help="Memory for its code and constants, e.g. 256K; likewise.")] = None,
) -> None:
    """Compile a deployed model to binaries that a Hexagon DSP loads as they are, or to C and objects that need no runtime.

    A model for a microcontroller is C already: it is copied.
    """
    with reporting():
        import graphopt
        from graphopt.artifacts.memory import OBJECTS, memory_size, misfits

        given = [None if size is None else memory_size(size) for size in (ram, flash)]
        loaded = graphopt.load(artifact)
        ready = OBJECTS in loaded.manifest.options and not architecture
        written = Path(loaded.save(out)) if ready else loaded.compile(out, architecture or (), name=name)
        if given != [None, None] and (found := misfits(graphopt.load(written).manifest, *given)):
            raise InputError(f"{written} does not fit: {'; '.join(found)}")
        print(f"saved to {written}: {', '.join(sorted(file.name for file in written.iterdir()))}")


def demo(
    target: Aim = "host",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the deployed model.")] = None,
) -> None:
    """Train a small network and optimize it for this machine.

    It learns handwritten digits in seconds; all together takes less than a minute.
    """
    with reporting():
        from graphopt.demo.main import run
        from graphopt.utils import files

        if out is not None:
            files.check_replaceable(out)
        run(target, out).print()
        if out is not None:
            print(f"saved to {out.resolve()}")
