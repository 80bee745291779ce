"""The stages of `graphopt.optimize`, in order; each takes the work as the one before left it.

    capture     a graph of the model, calibration data, an empty report
    shrink      less work: channels, factors                      \\
    prepare     a float graph that suits the target                > passes, run and checked one by one
    quantize    simulated integers                                /
    lower       an artifact; with `max_drop`, of several ways to quantize the first that is good enough
    evaluate    accuracy, fidelity, the share in integer
    measure     time and size beside the float original
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from graphopt.artifacts import registry
from graphopt.artifacts.backend import Tuning
from graphopt.artifacts.report import Report
from graphopt.compiler import recipes
from graphopt.compiler.budget.spend import spend
from graphopt.compiler.ladder import Ladder, Lowered, Tried
from graphopt.compiler.latency import LatencyTimer
from graphopt.compiler.request import Request
from graphopt.compiler.work import Work
from graphopt.evaluation.devices import confirm
from graphopt.evaluation.evaluate import Candidate, judge, zeros_note
from graphopt.evaluation.network import network
from graphopt.evaluation.scores import last_score, score
from graphopt.evaluation.timing import clock, untimed
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.ir.passes import Pass
from graphopt.ir.quantizers import is_quantized
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passmanager.runner import outputs
from graphopt.passmanager.step import Step
from graphopt.utils.memory import give_back
from graphopt.utils.timings import Timings
from graphopt.utils.version import versions

LOG = logging.getLogger(__name__)
SPARSE = 0.1  # share of zero weights from which the report says what they save

# ---- capture --------------------------------------------------------------------------------------------------------


def capture(request: Request, *, distil: bool = True) -> Work:
    """Capture the model and look at the data, after checking what can be checked without either.

    Args:
        distil: where there are no data, make up inputs now; else `made_up` does.
    """
    timings = Timings()
    with timings.stage("capture"):
        return _captured(request, timings, distil)


def made_up(work: Work) -> Work:
    """The same with inputs made up for it, where there are no data, and `capture` left that out."""
    if not work.data.synthetic:
        return work
    with work.timings.stage("make up inputs"):
        data, _ = work.request.data(work.original)
    return replace(work, data=data)


def _captured(request: Request, timings: Timings, distil: bool) -> Work:
    with timings.part("runtime"):  # which may take long to import, or to connect to
        backend = registry.backend(request.target.runtime.name)
        connection = request.connect(backend)
    with timings.part("graph"):
        graph, notes = request.graph()
    LOG.info("captured %s: %d calls, %d parameters", request.name, len(list(graph.calls())), cost.parameters(graph))
    backend.check_graph(graph)
    give_back(cost.weight_bytes(graph))
    images, labels = request.images(graph), request.labels(graph)
    with timings.part("data"):
        data, warnings = request.data(graph, distil)
    LOG.info("calibration data: %s", "made up" if data.synthetic else f"{type(request.calibration).__name__}")
    data, held_out = data.hold_out()
    report = Report(
        request.name, request.target.name, notes=notes, warnings=warnings, original=_original(graph), timings=timings,
        options=request.plain(), versions=versions(), seed=torch.initial_seed(),
    )  # fmt: skip
    original = graph.clone()  # weights of its own: a pass may train the graph
    if request.evaluate is not None:
        with timings.part("accuracy"):
            report.accuracy_before = score(request.evaluate, original, "the original model")
    return Work(
        request, backend, original, graph, data, held_out, report, connection, images or data.preprocessing, labels
    )


def _original(graph: Graph) -> Step:
    return Step("(original)", {}, [], 0.0, cost.parameters(graph), cost.macs(graph), cost.weight_bytes(graph))


# ---- shrink, prepare, quantize: passes ------------------------------------------------------------------------------


def shrink(work: Work) -> list[Pass]:
    """Less work before anything else, in numbers of channels that the target's kernels like.

    Made-up inputs say nothing about what matters: with those, the weights alone decide.
    """
    chosen, multiple = work.options.shrinking, work.target.kernels.channel_multiple
    how: dict[str, Any] = {
        "data": None if work.data.synthetic else work.data,
        "round_to": multiple,
        "checkpoint": work.options.quantization.checkpoint,
    }
    if chosen.budget is not None:
        with work.timings.stage("choose"):
            return spend(work, chosen.budget)
    passes: list[Pass] = []
    if chosen.keep_macs is not None and chosen.shrink_by == "prune":
        passes.append(Prune(chosen.keep_macs, **how))
    elif chosen.keep_macs is not None:
        passes.append(Factorize(target_macs=chosen.keep_macs, **how))
    if chosen.max_latency is not None:
        timer = LatencyTimer(work.target, threads=work.options.measurement.threads)
        passes.append(Factorize(max_latency=chosen.max_latency, timer=timer, **how))
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
        coded=work.options.stored.storage is not None and not work.data.synthetic,
    )  # fmt: skip


def _weight_only(work: Work, bits: int) -> list[Pass]:
    """Codes are chosen on data that are real and can be gone through again."""
    data, chosen = work.data, work.options.quantization
    if data.one_shot:
        data.notes.append(
            "every weight has its nearest code: choosing codes goes through the calibration data several times"
        )
    chosen_on = None if data.synthetic or data.one_shot else data
    layers = recipes.weight_bits(work.target.formats.weights, chosen.formats or {})
    return recipes.weight_only(work.target, bits, data=chosen_on, layers=layers, checkpoint=chosen.checkpoint)


# ---- lower ----------------------------------------------------------------------------------------------------------


def lower(work: Work) -> Lowered:
    """The artifact of the graph; with `max_drop`, that of the first way to quantize that is good enough."""
    tuning = work.options.tuning if work.options.tuning.asked_for else None
    max_drop, report = work.options.quantization.max_drop, work.report
    lowered = _lowered(work, tuning) if max_drop is None else _climbed(work, max_drop, tuning)
    lowered.artifact.annotate(work.preprocessing, work.labels)
    if work.options.stored.storage is not None:
        with work.timings.part("entropy coding"):
            lowered.artifact.store(work.options.stored.storage)
    if "tuned" in lowered.artifact.manifest.options:
        report.notes.append(lowered.artifact.manifest.options["tuned"])
    if exported := lowered.artifact.manifest.options.get("exported"):
        report.notes.append(f"torch's exporter wrote what has no rule here: {', '.join(exported)}")
    report.warnings += [f"{step.name}: {what}" for step in report.steps for what in step.short]
    report.notes += [note for note in work.data.notes if note not in report.notes]
    return lowered


def _lowered(work: Work, tuning: Tuning | None) -> Lowered:
    lowered = work.lower(work.graph, tuning)
    if work.request.evaluate is not None:
        with work.timings.part("accuracy"):
            work.report.accuracy_after = last_score(work.request.evaluate, lowered.answers, work.report)
    return lowered


def _climbed(work: Work, max_drop: float, tuning: Tuning | None) -> Lowered:
    """Of the ways to quantize the first that is good enough; only that one is tuned."""
    best = _climb(work, max_drop)
    work.graph = best.graph
    return best.lowered if tuning is None else work.lower(best.graph, tuning)


def _climb(work: Work, max_drop: float) -> Tried:
    evaluate, accuracy = work.request.evaluate, work.report.accuracy_before
    assert evaluate is not None
    assert accuracy is not None

    def lower_and_score(graph: Graph) -> tuple[Lowered, float]:
        lowered = work.lower(graph)
        return lowered, score(evaluate, lowered.answers, "the artifact")

    ladder = Ladder(
        start=work.graph,
        own=work.target.formats,
        data=work.data,
        quantized=_quantized(work),
        judge=lower_and_score,
        least=accuracy - max_drop,
        reference=outputs(work.original),
        dump=work.request.dump,
        formats=work.options.quantization.formats or {},
        timed=work.timings.part,
        clock=work.quick_ms,
    )
    return ladder.climb(work.report)


# ---- evaluate, measure ----------------------------------------------------------------------------------------------


def evaluate(work: Work, lowered: Lowered) -> None:
    """Fidelity and the share in integer, on the device where there is one."""
    artifact, report = lowered.artifact, work.report
    candidate = Candidate(work.original, work.graph, lowered.deployed, lowered.answers)
    audit = work.backend.audit(artifact)
    report.network = network(work.graph, audit)
    judge(report, audit, candidate, work.data, work.held_out)
    if work.connection is not None:
        confirm(report, work.placed(artifact), work.graph, work.simulate, work.data)
    elif artifact.refusal:
        report.notes.append(
            f"the artifact does not run on this machine ({artifact.refusal}); "
            "accuracy, agreement and SQNR are those of its simulation"
        )


def measure(work: Work, lowered: Lowered) -> None:
    """Time and size beside those of the float original."""
    artifact, report, chosen = lowered.artifact, work.report, work.options.measurement
    report.size_after = artifact.size_bytes
    baseline = None
    if chosen.measure:
        with work.timings.part("write the original"):
            baseline = work.floating(work.reference or work.target).artifact
        report.size_before = baseline.size_bytes
        before, after = work.placed(baseline), work.placed(artifact)
        if reason := untimed(work.target.runtime, after):
            report.missing["latency"] = reason
        else:
            with work.timings.part("latency"):
                clock(report, before, after, work.graph.example, chosen.threads)
    if (zeros := zero_share(work.graph)) >= SPARSE:
        report.notes.append(zeros_note(zeros, baseline, artifact))
