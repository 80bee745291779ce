"""The stages of `graphopt.optimize`, in order; each takes the work as the one before left it.

    begin       capture, calibration data, an empty report
    shrink      less work: channels, factors                      \\
    prepare     a float graph that suits the target                > passes, run and checked one by one
    quantize    simulated integers                                /
    lower       an artifact; with `max_drop`, of several ways to quantize the first that is good enough
    evaluate    accuracy, fidelity, the share in integer
    measure     time and size beside the float original
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.backend import Backend, Tuning
from graphopt.artifacts.report import Report
from graphopt.compiler import recipes
from graphopt.compiler.capturing import capture
from graphopt.compiler.ladder import Ladder, Lowered
from graphopt.compiler.latency import LatencyTimer
from graphopt.compiler.options import Options
from graphopt.data.calibration import Calibration
from graphopt.data.synthesize import without_data
from graphopt.evaluation.evaluate import clock, confirm, judge, last_score, score, stand_in, zeros_note
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.masks import zero_share
from graphopt.ir.passes import Pass
from graphopt.ir.quantizers import is_quantized
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passmanager.runner import outputs, run
from graphopt.passmanager.step import Step
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.memory import give_back

Evaluate: TypeAlias = Callable[[Callable[..., Any]], float]

SPARSE = 0.1  # share of zero weights from which the report says what they save


@dataclass
class Work:
    """What the stages hand on.

    Attributes:
        original: the graph as it was captured; no stage changes it.
        graph: the one that passes rewrite.
        data: what ranges, codes and layers are chosen on. held_out: what the result is judged on, where there is enough for both.
        dump: a folder for the text of the graph after every pass.
        connection: to the device it is measured on, kept for all artifacts.
    """

    target: Target
    backend: Backend
    options: Options
    original: Graph
    graph: Graph
    data: Calibration
    held_out: Calibration | None
    report: Report
    evaluate: Evaluate | None = None
    dump: str | Path | None = None
    connection: Any = None

    def run(self, passes: Sequence[Pass]) -> None:
        """Run passes on the graph; the report gets their steps."""
        self.report.steps += run(passes, self.graph, dump=self.dump)

    def lower(self, graph: Graph, tuning: Tuning | None = None) -> Lowered:
        """A graph's deployed form, its artifact, and what answers for that on this machine."""
        deployed = self.backend.deploy(graph, self.target)
        artifact = self.backend.lower(deployed, self.target, name=self.report.model, tuning=tuning)
        give_back(cost.weight_bytes(graph))
        return Lowered(deployed, artifact, stand_in(self.placed(artifact), graph, self.backend.simulate, self.target))

    def placed(self, artifact: Artifact) -> Artifact:
        """The artifact where it is measured."""
        device = self.options.measurement.device
        return artifact if device is None else artifact.on(device)


# ---- begin ----------------------------------------------------------------------------------------------------------


def begin(
    model: Any,
    example_inputs: Any,
    target: Target,
    options: Options,
    calibration: Any,
    evaluate: Evaluate | None,
    dump: str | Path | None,
    dynamic_batch: bool,
    dynamic_shapes: Any = None,
) -> Work:
    """Capture the model and look at the data, after checking what can be checked without either."""
    backend = registry.backend(target.runtime)
    device = options.measurement.device
    connection = backend.connect(device, target) if device is not None else None
    if options.tuning.asked_for:
        backend.check_tuning(target, options.tuning)
    graph, notes = capture(model, example_inputs, target, dynamic_batch, dynamic_shapes)
    backend.check_graph(graph, target)
    check_float32(graph)
    give_back(cost.weight_bytes(graph))
    report = Report(model=_name(model), target=target.name, notes=[*graph.notes, *notes], original=_original(graph))
    data = Calibration(calibration, graph) if calibration is not None else without_data(graph)
    if data.synthetic and options.quantization.weight_only is None:
        report.warnings.append(
            "no calibration data was given: ranges come from made-up inputs, so accuracy will suffer; pass calibration=..."
        )
    if options.quantization.max_drop is not None and data.one_shot:
        raise InputError("max_drop goes through the calibration data several times; give a list or a DataLoader")
    data, held_out = data.hold_out()
    work = Work(
        target,
        backend,
        options,
        graph.clone(),  # weights of its own: a pass may train the graph
        graph,
        data,
        held_out,
        report,
        evaluate,
        dump,
        connection,
    )
    if evaluate is not None:
        report.accuracy_before = score(evaluate, work.original, "the original model")
    return work


def check_float32(graph: Graph) -> None:
    """Raises InputError, by name, where weights, inputs or layers are of another floating-point type than float32."""
    layers = [(f"layer {graph.site(node)!r}", node.meta["val"]) for node in graph.calls() if Layer.of(node) is not None]
    weights = [(f"weight {name!r}", value) for name, value in graph.named_parameters()]
    inputs = [(f"input {name!r}", v) for name, v in zip(graph.input_names, graph.example.tensors(), strict=True)]
    for what, value in [*weights, *inputs, *layers]:
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{what} is in {dtype}: give the model and its inputs in float32 (model.float(), x.float())"
            )


def _name(model: Any) -> str:
    if isinstance(model, (str, Path)):
        return Path(model).stem
    return type(model).__name__ if not isinstance(model, Graph) else "model"


def _original(graph: Graph) -> Step:
    return Step("(original)", "", [], 0.0, cost.parameters(graph), cost.macs(graph), cost.weight_bytes(graph))


# ---- shrink, prepare, quantize: passes -------------------------------------------------------------------------------


def shrink(work: Work) -> list[Pass]:
    """Less work before anything else, in numbers of channels that the target's kernels like.

    Made-up inputs say nothing about what matters: with those, the weights alone decide.
    """
    chosen, target = work.options.shrinking, work.target
    data = None if work.data.synthetic else work.data
    passes: list[Pass] = []
    if chosen.keep_macs is not None and chosen.shrink_by == "prune":
        passes.append(Prune(chosen.keep_macs, data=data, round_to=target.channel_multiple))
    elif chosen.keep_macs is not None:
        passes.append(Factorize(target_macs=chosen.keep_macs, data=data, round_to=target.channel_multiple))
    if chosen.max_latency is not None:
        timer = LatencyTimer(target, threads=work.options.measurement.threads)
        passes.append(
            Factorize(max_latency=chosen.max_latency, data=data, round_to=target.channel_multiple, timer=timer)
        )
    return passes


def prepare(work: Work) -> list[Pass]:
    """A float graph that suits the target."""
    return recipes.prepare(work.target) if work.options.quantization.weight_only is None else []


def quantize(work: Work) -> list[Pass]:
    """Simulated integers, or weights of few bits. With `max_drop` nothing: `lower` chooses the way."""
    chosen = work.options.quantization
    if chosen.weight_only is not None:
        return _weight_only(work, chosen.weight_only)
    return [] if chosen.max_drop is not None else _quantized(work)(chosen.rounding, chosen.formats or {})


def _quantized(work: Work) -> Callable[..., list[Pass]]:
    """The passes that quantize with a way of rounding and formats by layer name."""
    chosen = work.options.quantization
    return partial(
        recipes.integer, work.target, work.data, estimator=chosen.estimator, average_bits=chosen.average_bits,
        checkpoint=chosen.checkpoint, quantized=is_quantized(work.original),
    )  # fmt: skip


def _weight_only(work: Work, bits: int) -> list[Pass]:
    """Codes are chosen on data that are real and can be gone through again."""
    data, chosen = work.data, work.options.quantization
    if data.one_shot:
        data.notes.append(
            "every weight has its nearest code: choosing codes goes through the calibration data several times"
        )
    chosen_on = None if data.synthetic or data.one_shot else data
    layers = recipes.weight_bits(work.target, chosen.formats or {})
    return recipes.weight_only(work.target, bits, data=chosen_on, layers=layers, checkpoint=chosen.checkpoint)


# ---- lower -----------------------------------------------------------------------------------------------------------


def lower(work: Work) -> Lowered:
    """The artifact of the graph; with `max_drop`, that of the first way to quantize that is good enough."""
    tuning = work.options.tuning if work.options.tuning.asked_for else None
    if work.options.quantization.max_drop is None:
        lowered = work.lower(work.graph, tuning)
        if work.evaluate is not None:
            work.report.accuracy_after = last_score(work.evaluate, lowered.answers, work.report)
    else:
        best = _climb(work, work.options.quantization.max_drop)
        work.graph = best.graph
        lowered = best.lowered if tuning is None else work.lower(best.graph, tuning)
    if "tuned" in lowered.artifact.manifest.options:
        work.report.notes.append(lowered.artifact.manifest.options["tuned"])
    work.report.warnings += [f"{step.name}: {what}" for step in work.report.steps for what in step.short]
    work.report.notes += [note for note in work.data.notes if note not in work.report.notes]
    return lowered


def _climb(work: Work, max_drop: float) -> Any:
    evaluate, accuracy = work.evaluate, work.report.accuracy_before
    assert evaluate is not None
    assert accuracy is not None

    def lower_and_score(graph: Graph) -> tuple[Lowered, float]:
        lowered = work.lower(graph)
        return lowered, score(evaluate, lowered.answers, "the artifact")

    ladder = Ladder(
        work.graph, work.target, work.data, _quantized(work), lower_and_score, accuracy - max_drop, outputs(work.original),
        work.dump, work.options.quantization.formats or {},
    )  # fmt: skip
    return ladder.climb(work.report)


# ---- evaluate, measure -----------------------------------------------------------------------------------------------


def evaluate(work: Work, lowered: Lowered) -> None:
    """Fidelity and the share in integer, on the device where there is one."""
    artifact, report = lowered.artifact, work.report
    judge(
        report, work.backend.audit(artifact), lowered.answers, lowered.deployed, work.original, work.graph, work.data,
        work.held_out,
    )  # fmt: skip
    if work.connection is not None:
        confirm(report, work.placed(artifact), work.graph, work.backend.simulate, work.target, work.data)
    elif artifact.refusal:
        report.notes.append(
            f"the artifact does not run on this machine ({artifact.refusal}); "
            "accuracy, agreement and SQNR are those of its simulation"
        )


def measure(work: Work, lowered: Lowered) -> None:
    """Time and size beside those of the float original, which is lowered for that alone."""
    artifact, report, chosen = lowered.artifact, work.report, work.options.measurement
    report.size_after = artifact.size_bytes
    zeros = zero_share(work.graph)
    baseline = None
    if chosen.measure:
        baseline = work.backend.lower(work.original, work.target, name=report.model)
        report.size_before = baseline.size_bytes
        clock(report, work.target, work.placed(baseline), work.placed(artifact), work.graph, chosen.threads)
    if zeros >= SPARSE:
        report.notes.append(zeros_note(zeros, baseline, artifact))
