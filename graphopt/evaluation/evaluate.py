"""What a finished artifact measures: its accuracy, its fidelity to the original, its share in integer, its time.

Each goes into the report, or the reason why it could not be measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.report import Latency, Report
from graphopt.artifacts.report_text import slower
from graphopt.data import batches
from graphopt.data.calibration import Calibration
from graphopt.evaluation.fidelity import LOW, Fidelity
from graphopt.evaluation.sensitivity import analyze
from graphopt.formats import FAKE_QUANTIZE, in_blocks
from graphopt.ir import cost as measures
from graphopt.ir.batches import count as samples_of
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.passmanager.runner import outputs
from graphopt.passmanager.step import Step
from graphopt.targets import Runtime, Target, architecture, machine_here
from graphopt.utils.errors import InputError, first_line
from graphopt.utils.progress import track
from graphopt.utils.quantities import size

AGREEMENT_SAMPLES = 512  # calibration samples on which float original and artifact are compared
COMPARED_SAMPLES = 64  # on which a device is compared with the simulation; and with the original, where it is emulated
FAR = 0.8  # share of equal predictions below which the layer to blame is looked for
BLAMED_ON = 16  # samples that it is looked for on
FLOAT_SHARE = 0.2  # of the work in float from which a report warns
ALIKE = 0.95  # share of equal predictions below which a report warns


def score(evaluate: Callable[[Callable[..., Any]], float], model: Callable[..., Any], what: str) -> float:
    try:
        with torch.no_grad():
            value = evaluate(model)
    except Exception as error:
        reason = first_line(error, "no message")
        raise InputError(f"evaluate raised {type(error).__name__} for {what}: {reason}") from error
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise InputError(f"evaluate must return a number, got {type(value).__name__} for {what}") from None
    if math.isnan(value):
        raise InputError(f"evaluate returned NaN for {what}")
    return value


def stand_in(
    artifact: Artifact, graph: Graph, simulate: Callable[[Graph, Target], Callable[..., Any]], target: Target
) -> Callable[..., Any]:
    """What answers on this machine for an artifact: itself, or where it cannot run, its simulation (float graphs: themselves)."""
    if not artifact.refusal:
        return artifact
    return simulate(graph, target) if graph.calls(FAKE_QUANTIZE) else graph


def last_score(
    evaluate: Callable[[Callable[..., Any]], float], artifact: Callable[..., Any], report: Report
) -> float | None:
    """The score of the result; work that is done is not thrown away where it cannot be had."""
    try:
        return score(evaluate, artifact, "the artifact")
    except InputError as error:
        report.missing["accuracy"] = str(error)
        report.warnings.append(str(error))
        return None


def judge(
    report: Report,
    audit: Audit,
    answers: Callable[..., Any],
    deployed: Graph,
    original: Graph,
    graph: Graph,
    data: Calibration,
    held_out: Calibration | None = None,
) -> None:
    """Weights as stored, share in integer, fidelity of the deployed model.

    Args:
        graph: the simulated one.
        data: what choices were made on. held_out: samples that they were not made on, which fidelity is measured on if given.
    """
    last = report.steps[-1] if report.steps else report.original
    assert last is not None
    reference = outputs(original)
    results = answers(*original.example.args, **original.example.kwargs)
    report.steps.append(
        Step(
            "(lowered)", "", [], 0.0, measures.parameters(deployed), measures.macs(deployed), measures.weight_bytes(deployed),
            measures.sqnr(reference, results),
        )
    )  # fmt: skip
    report.integer_macs, report.weight_only_macs = audit.share, audit.weight_only_shares
    report.float16_macs, report.float_operators = audit.float16_share, audit.floating
    if (few := few_in_integer(audit)) is not None:
        report.warnings.append(few)
    fidelity = Fidelity(_floating_names(original, reference))
    if data.synthetic or data.one_shot:
        report.missing["agreement"] = (
            "no calibration data was given"
            if data.synthetic
            else "the calibration data is an iterator, which was used up; give a list or a DataLoader"
        )
        fidelity.update(_floating(reference), _floating(tensors(results)))
        _say(report, fidelity, None, graph, "the example")
        return
    slow = isinstance(answers, Artifact) and answers.emulated
    enough = COMPARED_SAMPLES if slow else AGREEMENT_SAMPLES
    samples = _compare_with_original(report, fidelity, original, answers, held_out or data, enough)
    where = f"{samples} calibration samples, which choices were {'not ' if held_out else ''}made on"
    if report.agreement is not None:
        report.notes.append(f"agreement was measured on {where}")
    _say(report, fidelity, next(iter(data)), graph, where)


def _compare_with_original(
    report: Report, fidelity: Fidelity, original: Graph, answers: Callable[..., Any], data: Calibration, enough: int
) -> int:
    """Learn fidelity, and agreement of the classes, on at most so many samples; the number that it took."""
    seen, equal, classes = 0, 0.0, True
    with torch.no_grad():
        for batch in track(data, "comparing with the original"):
            ours, theirs = _flat(original, batch), _flat(answers, batch)
            fidelity.update(_floating(ours), _floating(theirs))
            alike = measures.agreement(ours, theirs)
            classes = not math.isnan(alike)
            count = samples_of(original, batch)
            equal += alike * count if classes else 0.0
            seen += count
            if seen >= enough:
                break
    if classes:
        report.agreement = equal / seen
    else:
        report.missing["agreement"] = "the model does not return classes"
    return seen


def few_in_integer(audit: Audit) -> str | None:
    """A warning where something was quantized for integer kernels and much of it computes in float, with the reasons."""
    work = Counter[str]()
    for operator in audit.floating:
        work[operator.reason] += operator.macs
    share = sum(work.values()) / max(audit.total_macs, 1)
    if not audit.integer_macs or share <= FLOAT_SHARE:
        return None
    reasons = "; ".join(f"{macs / audit.total_macs:.1%}: {reason}" for reason, macs in work.most_common(3) if macs)
    return f"{share:.1%} of the multiply-accumulates stay in float ({reasons})"


def _say(report: Report, fidelity: Fidelity, batch: list[Tensor] | None, graph: Graph, where: str) -> None:
    """SQNR into the report, and warnings where an answer, or a channel of one, is far from the original's."""
    if not fidelity.names:
        return
    name, worst = min(fidelity.outputs.items(), key=lambda item: item[1])
    report.sqnr_db = worst
    report.notes.append(f"output SQNR was measured on {where}")
    if worst < LOW:
        report.warnings.append(
            f"the answers are far from the original's: output {name!r} has {worst:.1f} dB on {where}{blame(report, graph, batch)}"
        )
    elif report.agreement is not None and report.agreement < FAR:
        report.warnings.append(
            f"the predictions are far from the original's: {report.agreement:.1%} agree on {where}{blame(report, graph, batch)}"
        )
    report.warnings += fidelity.drowned()


def blame(report: Report, graph: Graph, batch: list[Tensor] | None) -> str:
    """Which layer, quantized alone, costs most; where none is quantized, which step."""
    if graph.calls(FAKE_QUANTIZE) and batch is not None:
        layers = analyze(graph, [tuple(batch)], output_samples=BLAMED_ON).layers
        if layers:
            worst = min(layers, key=lambda layer: layer.alone.output.sqnr_db)
            cost = worst.alone.output.sqnr_db
            return f"; alone, {worst.name!r} costs most ({cost:.1f} dB); try formats={{{worst.name!r}: None}}"
    known = [
        (step.name, step.sqnr_db) for step in report.steps if step.sqnr_db is not None and step.name != "(lowered)"
    ]
    falls = [(now - before, name) for (_, before), (name, now) in zip([("", 200.0), *known], known, strict=False)]
    return f"; the step {min(falls)[1]} costs most" if falls else ""


def _floating(leaves: Iterable[Any]) -> list[Tensor]:
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _floating_names(graph: Graph, answers: list[Tensor]) -> list[str]:
    return [name for name, t in zip(graph.output_names, answers, strict=True) if t.is_floating_point()]


def clock(report: Report, target: Target, before: Artifact, after: Artifact, graph: Graph, threads: int) -> None:
    if reason := _untimed(target.runtime, after):
        report.missing["latency"] = reason
        return
    args, kwargs = graph.example.args, graph.example.kwargs
    for artifact in (before, after):
        artifact.set_threads(threads)
    calls = {
        "before": lambda: before.milliseconds(*args, **kwargs),
        "after": lambda: after.milliseconds(*args, **kwargs),
    }
    taken = measures.timings(calls, clocked=True)
    runtime = after.manifest.runtime
    report.latency = Latency(
        before_ms=taken.median("before"),
        after_ms=taken.median("after"),
        speedup=taken.speedup("before", "after"),
        before=f"{runtime}, float",
        after=f"{runtime}, {_arithmetic(report)}",
        threads=threads,
        host=after.device or measures.host_cpu(),
    )
    if report.integer_macs and (warning := slower(report.latency, report.float_operators)):
        report.warnings.append(warning)


def _arithmetic(report: Report) -> str:
    if report.integer_macs or not (report.weight_only_macs or report.float16_macs):
        return "integer"
    return "float16" if report.float16_macs else "weights in few bits"


def _untimed(target: Runtime, artifact: Artifact) -> str:
    """Why its latency cannot be measured where it runs; empty where it can."""
    if artifact.device:
        return f"{artifact.device} takes other times than the hardware" if artifact.emulated else ""
    if architecture() != target.architecture:
        return f"the target is {target.architecture}, this machine is {architecture()}"
    if target.machine not in (None, machine_here()):
        return f"the target has the kernels of {target.machine}, this machine those of {machine_here()}"
    return artifact.refusal


def confirm(
    report: Report,
    artifact: Artifact,
    graph: Graph,
    simulate: Callable[[Graph, Target], Callable[..., Any]],
    target: Target,
    data: Calibration,
) -> None:
    """Compare what a device answers with what it should: simulated integers, to the last bit where it is said to keep them."""
    exact = not all(map(in_blocks, graph.calls(FAKE_QUANTIZE)))
    expected = simulate(graph, target) if exact else graph
    if not artifact.exact:
        _compare(report, artifact, expected, [graph.example.tensors()] if data.one_shot else data)
        return
    args, kwargs = graph.example.args, graph.example.kwargs
    with torch.no_grad():
        answers = [tensors(model(*args, **kwargs)) for model in (artifact, expected)]
    differing = total = 0
    for ours, theirs in zip(*answers, strict=True):
        same = ours == theirs if exact else torch.isclose(ours, theirs, rtol=1e-4, atol=1e-5)
        differing, total = differing + int((~same).sum()), total + ours.numel()
    reference = "its simulation" if exact else "the graph"
    said = f"{artifact.device} answered the example with {differing} of {total} numbers unlike {reference}"
    (report.warnings if differing else report.notes).append(said)


def _compare(report: Report, artifact: Artifact, expected: Callable[..., Any], batches: Iterable[list[Tensor]]) -> None:
    """How often a device that rounds in its own way predicts the same class, and how far its answers are apart."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in track(batches, "comparing with the simulation"):
        with torch.no_grad():
            pairs.append((_flat(artifact, batch)[0], _flat(expected, batch)[0]))
        if sum(len(theirs) for theirs, _ in pairs) >= COMPARED_SAMPLES:
            break
    theirs, ours = (
        torch.cat([t.reshape(len(t) if t.dim() else 1, -1) for t in column]) for column in zip(*pairs, strict=True)
    )
    span = float(ours.max() - ours.min())
    share = float((theirs - ours).abs().max()) / span if span else 0.0
    said = f"{artifact.device} differs from its simulation by {share:.1%} of the range of answers at most, on {len(ours)} samples"
    if pairs[0][0].dim() < 2:
        report.notes.append(said)
        return
    alike = sum(measures.agreement(*pair) * len(pair[0]) for pair in pairs) / sum(len(pair[0]) for pair in pairs)
    (report.notes if alike >= ALIKE else report.warnings).append(f"{said}; {alike:.1%} have the same class")


def zeros_note(zeros: float, before: Artifact | None, after: Artifact) -> str:
    """What zeros among the weights save; with the sizes of both files where both were measured."""
    measured = [artifact for artifact in (before, after) if artifact is not None]
    files = " -> ".join(f"{size(a.size_bytes)} ({size(a.compressed_bytes)} compressed)" for a in measured)
    return (
        f"{zeros:.1%} of the weights are zero: that saves storage where files are compressed, {files} with zlib; "
        f"it saves no time, the kernels of {after.manifest.runtime} multiply by zeros like by anything else"
    )


def _flat(model: Callable[..., Any], batch: list[Tensor]) -> list[Tensor]:
    args, kwargs = _nested(model, batch)
    return tensors(model(*args, **kwargs))


def _nested(model: Any, batch: list[Tensor]) -> tuple[Any, Any]:
    """A flat batch in the structure that graphs and simulations take; artifacts take it flat."""
    if isinstance(model, Artifact):
        return batch, {}
    return batches.nested(model.example, batch)
