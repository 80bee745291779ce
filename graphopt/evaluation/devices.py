"""Artifacts that run elsewhere: what stands for them on this machine, and whether a device answers what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Report
from graphopt.data.calibration import Calibration
from graphopt.evaluation.evaluate import COMPARED_SAMPLES, answers_to
from graphopt.formats import FAKE_QUANTIZE, in_blocks
from graphopt.ir import cost as measures
from graphopt.ir.graph import Example, Graph
from graphopt.ir.structure import tensors
from graphopt.utils.progress import track

Simulate: TypeAlias = Callable[[Graph], Callable[..., Any]]
ALIKE = 0.95  # share of equal predictions below which a report warns


def stand_in(artifact: Artifact, graph: Graph, simulate: Simulate) -> Callable[..., Any]:
    """The artifact, where it runs on this machine; else the simulation of its graph, or a float graph itself."""
    if not artifact.refusal:
        return artifact
    return simulate(graph) if graph.calls(FAKE_QUANTIZE) else graph


def confirm(report: Report, artifact: Artifact, graph: Graph, simulate: Simulate, data: Calibration) -> None:
    """Compare a device's answers with the simulation's, and say so in the report.

    They are to be equal where the artifact says that it is exact, on the example; else it is measured how far they are apart, on
    calibration data. Graphs with weights in blocks only are compared with themselves, in float.
    """
    exact = not all(map(in_blocks, graph.calls(FAKE_QUANTIZE)))
    expected = simulate(graph) if exact else graph
    if not artifact.exact:
        _how_far(report, artifact, expected, [graph.example.tensors()] if data.one_shot else data)
        return
    _how_many(report, artifact, expected, graph.example, exact)


def _how_many(report: Report, artifact: Artifact, expected: Callable[..., Any], example: Example, exact: bool) -> None:
    """How many numbers of a device's answers are not as expected: equal, or close where they come from float."""
    args, kwargs = example.args, example.kwargs
    with torch.no_grad():
        answers = [tensors(model(*args, **kwargs)) for model in (artifact, expected)]
    differing = total = 0
    for ours, theirs in zip(*answers, strict=True):
        same = ours == theirs if exact else torch.isclose(ours, theirs, rtol=1e-4, atol=1e-5)
        differing, total = differing + int((~same).sum()), total + ours.numel()
    reference = "its simulation" if exact else "the graph"
    said = f"{artifact.device} answered the example with {differing} of {total} numbers unlike {reference}"
    (report.warnings if differing else report.notes).append(said)


def _how_far(report: Report, artifact: Artifact, expected: Callable[..., Any], batches: Iterable[list[Tensor]]) -> None:
    """How often a device that rounds in its own way predicts the same class, and how far its answers are apart."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in track(batches, "comparing with the simulation"):
        with torch.no_grad():
            pairs.append((answers_to(artifact, batch)[0], answers_to(expected, batch)[0]))
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
