"""One call from a PyTorch model to a measured artifact."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from typing_extensions import Unpack

from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.backend import Tuning
from graphopt.artifacts.labels import class_labels as named_classes
from graphopt.artifacts.manifest import read_manifest
from graphopt.artifacts.opening import opened
from graphopt.artifacts.report import Report
from graphopt.compiler import placement, retraining, stages
from graphopt.compiler.cache import Cache
from graphopt.compiler.ladder import Lowered
from graphopt.compiler.options import Measurement, Options, Quantization, Shortcuts, Shrinking, Storage, Training
from graphopt.compiler.pipeline import pipeline
from graphopt.compiler.request import Request
from graphopt.compiler.runtimes import candidates, fastest
from graphopt.compiler.work import Work
from graphopt.data.calibration import Calibration
from graphopt.data.preprocessing_sources import preprocessing_of
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target, find
from graphopt.utils.alone import undisturbed
from graphopt.utils.errors import GraphoptError, InputError
from graphopt.utils.files import steady

Passes = Sequence[Pass] | Callable[[Target, Calibration], Sequence[Pass]] | None
LOG = logging.getLogger(__name__)


class Optimized(NamedTuple):
    """What `optimize` returns.

    Attributes:
        artifact: what is deployed; `artifact(*inputs)` runs it, `artifact.save(folder)` keeps it.
        report: every step and every measurement; prints as a table.
        graph: the simulated graph, which answers in float what the artifact answers, up to rounding, and can be trained on;
            `simulate` makes of it what answers to the last bit.
    """

    artifact: Artifact
    report: Report
    graph: Graph


@undisturbed()
def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | Target = "arm",
    calibration: Any = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    train: Any = None,
    preprocessing: Any = None,
    input: Literal["uint8"] | None = None,
    class_labels: Sequence[str] | Mapping[Any, str] | None = None,
    passes: str | Sequence[Pass] | Callable[[Target, Calibration], Sequence[Pass]] | None = None,
    shrinking: Shrinking | None = None,
    quantization: Quantization | None = None,
    tuning: Tuning | None = None,
    measurement: Measurement | None = None,
    training: Training | None = None,
    stored: Storage | None = None,
    dump: str | Path | None = None,
    cache: str | Path | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    **shortcuts: Unpack[Shortcuts],
) -> Optimized:
    """Make a trained model small and fast, and prove it.

    Args:
        model: an `nn.Module` in eval mode, a `Graph`, a `torch.fx.GraphModule`, an `ExportedProgram`, or a `.pt2` path. It is
            left untouched.
        example_inputs: a tensor or a tuple of positional inputs. None: inferred from the model, and the report says how.
        target: a name (`graphopt.targets.names()`) or a `Target`.
        calibration: typical inputs; see `graphopt.data.Calibration`. None: inputs synthesized from the batch norms'
            statistics, random ones where there are none, and the report warns.
        evaluate: takes a callable that behaves like the model and returns its accuracy; run on the original and the artifact.
        train: training data: what comes out of the passes is trained on them before it is lowered, from the original's answers
            and labels, where there are any; see `graphopt.training.batches` for their forms, and `training`. The best state by
            `evaluate` is kept (give it images that your final test does not see); without it, by a tenth of the data.
        preprocessing: what is done to images in front of the model: a `graphopt.Preprocessing`, or a form of other libraries that
            `graphopt.data.preprocessing_sources` lists. Photos among the calibration data are read by it, and the artifact
            carries it. None: what the model says of itself (timm's `pretrained_cfg`), where it does.
        input: `uint8`: the artifact takes pixels as they come from a camera, in the layout of the model's input. What
            `preprocessing` multiplies, subtracts and divides by becomes part of the first layers. Calibration data, `evaluate`,
            `train` and the simulated graph take pixels then, too. None: what the model takes.
        class_labels: names of the classes of the first output, in a list or by number, which the artifact carries. None: the
            model's `config.id2label`, where it has one.
        passes: in place of the target's recipe: a list, a function of the target and the calibration batches, or a text such as
            `"simplify, fold-batch-norm, quantize"` (`graphopt.compiler.pipeline`).
        shrinking: less work before anything else: `keep_macs`, `shrink_by`, `max_latency`, or a `budget`.
        quantization: number formats: `formats`, `estimator`, `rounding`, `average_bits`, `weight_only`, `max_drop`, `checkpoint`.
        tuning: on targets of TVM, measure other kernels: `tune`, `tune_database`, `tuner`. The original that the result is
            compared with is not tuned.
        measurement: `measure`, `threads`, `runtime`, `device`.
        training: how to train, where `train` is given: `epochs`, `batch_size`, `rate`, `quantizers`, `teacher`, `temperature`,
            `loss`, `training_checkpoint`.
        stored: what the file holds: `storage`.
        dump: a folder for the text of the graph after every pass.
        cache: a folder of results: where this call was made before, for the same model, data and options, its result is taken
            from there (accuracy is measured anew); see `graphopt.compiler.cache`.
        dynamic_batch: let the batch size stay free where the model and the target allow it.
        dynamic_shapes: other sizes that stay free, in the form of `torch.export.export`; see `Graph.capture`.
        **shortcuts: any field of the groups above, as a keyword: `rounding="gptq"` is
            `quantization=Quantization(rounding="gptq")`. `graphopt.compiler.options` documents each.

    Returns:
        The artifact, the report, and the simulated graph.

    Raises:
        InputError: an argument does not fit; CaptureError: the model cannot be captured; NonFiniteError: NaN or infinity in a
            weight or activation. Nothing is written before `artifact.save`.
    """
    options = Options.of(shrinking, quantization, tuning, measurement, training, stored, shortcuts)
    options.check(passes, evaluate, train)
    if input not in (None, "uint8"):
        raise InputError(f"input is 'uint8', or None for what the model takes; got {input!r}")
    steps = pipeline(passes) if isinstance(passes, str) else passes
    tried = candidates(find(target), options)[: None if train is None else 1]  # one training, for one runtime
    LOG.info("target %s, through %s", tried[0].name, " or ".join(each.runtime.name for each in tried))
    request = Request(
        model,
        example_inputs,
        tried[0],
        options,
        calibration,
        evaluate,
        dump=dump,
        dynamic_batch=dynamic_batch,
        dynamic_shapes=dynamic_shapes,
        preprocessing=None if preprocessing is None else preprocessing_of(preprocessing),
        class_labels=() if class_labels is None else named_classes(class_labels),
        train=train,
        input=input,
    )
    request.check_folders()
    kept = None if cache is None else Cache(cache)
    if kept is None:
        return _make(_captured(request), tried, steps)
    work = _captured(request, distil=False)
    return Optimized(*kept.result(work, passes, lambda: _make(stages.made_up(work), tried, steps), load))


def _captured(request: Request, *, distil: bool = True) -> Work:
    work = stages.capture(request, distil=distil)
    if request.train is not None:
        retraining.check(work)
    return work


def _make(work: Work, targets: Sequence[Target], passes: Passes) -> Optimized:
    """Run the passes, for each target that may be meant, and lower and measure the one that is faster."""
    lower, begun = partial(_lower, passes=passes), copy.deepcopy(work.report)
    if len(targets) == 1 or not work.repeatable(passes):
        lowered = lower(work)
    else:
        work, lowered = fastest([work, *map(work.aimed_at, targets[1:])], lower)
    if passes is None and placement.applies(work):
        work, lowered = placement.leave_in_float(work, lowered, lower, begun)
    with work.timings.stage("measure"):
        stages.measure(work, lowered)
    lowered.artifact.manifest.report = work.report.to_dict()
    _log(work.report)
    return Optimized(lowered.artifact, work.report, work.graph)


def _log(report: Report) -> None:
    for operator in report.float_operators:
        LOG.info("%s stays float (%s): %s", operator.site, operator.operator, operator.reason)
    for note in report.notes:
        LOG.info("note: %s", note)
    for warning in report.warnings:
        LOG.warning("%s", warning)
    for name, text in report.results().items():
        LOG.info("%s: %s", name, "; ".join(text.split("\n")))


def _listed(passes: Sequence[Pass] | Callable[[Target, Calibration], Sequence[Pass]], work: Work) -> list[Pass]:
    if not callable(passes):
        return list(passes)
    name = getattr(passes, "__name__", type(passes).__name__)
    try:
        inspect.signature(passes).bind(work.target, work.data)
    except TypeError as error:
        raise InputError(f"passes={name} is called with the target and the calibration data: {error}") from None
    found = passes(work.target, work.data)
    if not isinstance(found, Sequence):
        raise InputError(f"passes={name} returned {type(found).__name__}; it must return a list of passes")
    return list(found)


def _lower(work: Work, passes: Passes) -> Lowered:
    """Run the passes, lower what they leave, and compare it with the original."""
    if passes is None:
        plan = {"shrink": stages.shrink(work), "prepare": stages.prepare(work), "quantize": stages.quantize(work)}
    else:
        plan = {"passes": _listed(passes, work)}
    work.run(plan)
    if work.request.train is not None:
        retraining.retrain(work)
    with work.timings.stage("lower"):
        lowered = stages.lower(work)
    with work.timings.stage("evaluate"):
        stages.evaluate(work, lowered)
    return lowered


def simulate(graph: Graph, target: str | Target = "arm", *, machine: str | None = None) -> Simulation:
    """What the device will answer, before there is one: the integers of the target's runtime, computed in torch.

    Sums are exact in 32 bits; requantization, saturation, lookup tables and the order of operations are the kernels' own. (The
    simulated graph itself, `Optimized.graph`, computes in float32, where values next to a tie may round differently.)

    Args:
        graph: quantized, as `Optimized.graph`; it is not changed.
        target: what it was quantized for: a name or a `Target`.
        machine: whose kernels, `"x86_64"`, `"avx2"` (x86-64 without VNNI, where pairs of 8-bit products saturate) or `"aarch64"`;
            the target's if not given. Another than the target's serves to compare with an artifact that runs on this machine.

    Returns:
        A callable that takes what the original model takes and returns what the artifact returns, with `codes(...)` for every
        quantized value, `mismatches(artifact, ...)` to find the first kernel that computes something else, and `saturation(...)`
        to count the sums of each layer that saturate without VNNI.

    Raises:
        InputError: the graph is not quantized; unknown target or machine.
    """
    chosen = find(target)
    backend = registry.backend(chosen.runtime.name)
    return backend.simulate(graph, chosen, machine)


def load(folder: str | Path) -> Artifact:
    """Open a saved artifact, after verifying every file of it; whole, also where another process replaces it meanwhile.

    Raises:
        ArtifactError: it is damaged, was altered, or comes from a newer graphopt.
        InputError: there is none.
    """
    place = Path(folder).expanduser().absolute()

    def read() -> Artifact:
        manifest = read_manifest(place)
        artifact = opened(place, manifest)
        with contextlib.suppress(GraphoptError):  # what cannot run here says so when it is called
            artifact.prepare()
        return artifact

    return steady(place, read)
