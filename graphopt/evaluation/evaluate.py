"""What a report says of a result beside accuracy and time: its share in integer, its fidelity to the original.

Each goes into the report, or the reason why it could not be measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.report import Report
from graphopt.data import batches
from graphopt.data.calibration import Calibration
from graphopt.evaluation.fidelity import LOW, Fidelity
from graphopt.evaluation.sensitivity import analyze
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import cost as measures
from graphopt.ir.batches import count as samples_of
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import is_signs, is_uniform, quantizers
from graphopt.ir.structure import tensors
from graphopt.passmanager.runner import outputs
from graphopt.passmanager.step import Step
from graphopt.utils.progress import track
from graphopt.utils.quantities import few, size

NAMED = 4  # layers that a warning lists
AGREEMENT_SAMPLES = 512  # calibration samples on which float original and artifact are compared
COMPARED_SAMPLES = 64  # on which a device is compared with the simulation; and with the original, where it is emulated
FAR = 0.8  # share of equal predictions below which the layer to blame is looked for, if so few are not chance
BLAMED_ON = 16  # samples that it is looked for on
FLOAT_SHARE = 0.2  # of the work in float from which a report warns


@dataclass(frozen=True)
class Candidate:
    """A result to be judged.

    Attributes:
        original: the float graph that it was made of.
        graph: the simulated one.
        deployed: that as the backend stores it.
        answers: what computes the result's answers on this machine: the artifact, or its simulation.
    """

    original: Graph
    graph: Graph
    deployed: Graph
    answers: Callable[..., Any]


def judge(
    report: Report, audit: Audit, candidate: Candidate, data: Calibration, held_out: Calibration | None = None
) -> None:
    """Weights as stored, share in integer, fidelity of the answers.

    Args:
        data: what choices were made on.
        held_out: samples that they were not made on, which fidelity is measured on if given.
    """
    original = candidate.original
    reference, results = outputs(original), candidate.answers(*original.example.args, **original.example.kwargs)
    comparable = measures.same_form(reference, results)
    report.steps.append(_lowered(candidate.deployed, measures.sqnr(reference, results) if comparable else None))
    report.integer_macs, report.weight_only_macs = audit.share, audit.weight_only_shares
    report.float16_macs, report.float_operators = audit.float16_share, audit.floating
    if (floating := few_in_integer(audit, quantized=_rounds_values(candidate.graph))) is not None:
        report.warnings.append(floating)
    for how in sorted(set(audit.few_bits.values())):
        sites = [site for site, found in audit.few_bits.items() if found == how]
        report.notes.append(f"weights of few bits are stored in {how} ({', '.join(sites)})")
    if audit.saturating:
        report.warnings.append(saturating(audit.saturating))
    if not comparable:
        report.missing["agreement"] = "a pass has put something else in the place of the original's outputs"
        return
    fidelity = Fidelity(_floating_names(original, reference))
    if data.synthetic or data.one_shot:
        report.missing["agreement"] = (
            "no calibration data was given"
            if data.synthetic
            else "the calibration data is an iterator, which was used up; give a list or a DataLoader"
        )
        fidelity.update(_floating(reference), _floating(tensors(results)))
        _say(report, fidelity, None, candidate.graph, "the example")
        return
    samples = _compare_with_original(report, fidelity, candidate, held_out or data)
    where = f"{samples} calibration samples, which choices were {'not ' if held_out else ''}made on"
    far = report.agreement is not None and at_most(report.agreement, samples) < FAR
    if report.agreement is not None:
        report.notes.append(f"agreement was measured on {where}")
    _say(report, fidelity, next(iter(data)), candidate.graph, where, far=far)


def _lowered(deployed: Graph, sqnr_db: float | None) -> Step:
    """The last line of a report's steps: the graph as it is stored."""
    weights = measures.weight_bytes(deployed)
    return Step("(lowered)", {}, [], 0.0, measures.parameters(deployed), measures.macs(deployed), weights, sqnr_db)


def _compare_with_original(report: Report, fidelity: Fidelity, candidate: Candidate, data: Calibration) -> int:
    """Learn fidelity, and agreement of the classes, on as many samples as are enough; the number that it took."""
    original, answers = candidate.original, candidate.answers
    slow = isinstance(answers, Artifact) and answers.emulated
    enough = COMPARED_SAMPLES if slow else AGREEMENT_SAMPLES
    seen, equal, classes = 0, 0.0, True
    with torch.no_grad():
        for batch in track(data, "comparing with the original"):
            ours, theirs = answers_to(original, batch), answers_to(answers, batch)
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


def _rounds_values(graph: Graph) -> bool:
    """Whether a value is rounded to what integer kernels read, so that layers behind it were meant to run in them."""
    return any(
        (is_uniform(node) or is_signs(node)) and not graph.is_constant(operand(node)) for node in quantizers(graph)
    )


def saturating(layers: list[str]) -> str:
    """A warning of layers that can answer something else here than the target's own processors do."""
    several = f"{len(layers)} layer{'s' if len(layers) > 1 else ''} ({few(layers, NAMED)})"
    return (
        f"sums of {several} can saturate on this CPU, which has no VNNI, and then figures measured here are worse than those of "
        "CPUs with it; for CPUs like this one take the target 'x86-avx2', or 'host'"
    )


def few_in_integer(audit: Audit, *, quantized: bool) -> str | None:
    """A warning where much of what was quantized for integer kernels computes in float, or all of it, with the reasons.

    Args:
        quantized: values were rounded for integer kernels, whether or not one computes with them.
    """
    work = Counter[str]()
    for operator in audit.floating:
        work[operator.reason] += operator.macs
    share = sum(work.values()) / max(audit.total_macs, 1)
    if not quantized or (audit.integer_macs and share <= FLOAT_SHARE):
        return None
    reasons = "; ".join(f"{macs / audit.total_macs:.1%}: {reason}" for reason, macs in work.most_common(3) if macs)
    if not audit.integer_macs:
        return f"the model was quantized, but nothing of it computes in integer ({reasons or 'it has no layers'})"
    return f"{share:.1%} of the multiply-accumulates stay in float ({reasons})"


def at_most(share: float, count: int) -> float:
    """The upper end of Wilson's interval (1927) of 95 %: what a share seen on `count` samples is at most, but for chance."""
    z = 1.96
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) + z * spread) / (1 + z * z / count)


def _say(
    report: Report, fidelity: Fidelity, batch: list[Tensor] | None, graph: Graph, where: str, *, far: bool = False
) -> None:
    """SQNR into the report, and warnings where an answer, or a channel of one, is far from the original's.

    Args:
        far: so many predictions differ that it is not chance.
    """
    if not fidelity.names:
        return
    name, worst = min(fidelity.outputs.items(), key=lambda item: item[1])
    report.sqnr_db = worst
    report.notes.append(f"output SQNR was measured on {where}")
    if worst < LOW:
        report.warnings.append(
            f"the answers are far from the original's: output {name!r} has {worst:.1f} dB on {where}{blame(report, graph, batch)}"
        )
    elif far:
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


def zeros_note(zeros: float, before: Artifact | None, after: Artifact) -> str:
    """What zeros among the weights save; with the sizes of both files where both were measured."""
    measured = [artifact for artifact in (before, after) if artifact is not None]
    files = " -> ".join(f"{size(a.size_bytes)} ({size(a.compressed_bytes)} compressed)" for a in measured)
    return (
        f"{zeros:.1%} of the weights are zero: that saves storage where files are compressed, {files} with zlib; "
        f"it saves no time, the kernels of {after.manifest.runtime} multiply by zeros like by anything else"
    )


def answers_to(model: Callable[..., Any], batch: list[Tensor]) -> list[Tensor]:
    """What a graph, a simulation or an artifact answers to a batch, as flat as the batch."""
    args, kwargs = _nested(model, batch)
    return tensors(model(*args, **kwargs))


def _nested(model: Any, batch: list[Tensor]) -> tuple[Any, Any]:
    """A flat batch in the structure that graphs and simulations take; artifacts take it flat."""
    if isinstance(model, Artifact):
        return batch, {}
    return batches.nested(model.example, batch)
