"""Parts that are slower in integer than in float on this machine stay in float: the target `host` decides that by measuring.

What a table of kernels promises (`graphopt.evaluation.kernel_costs`) is tried as a whole: the network is quantized once more with
those parts in float, both artifacts take turns, and the faster is kept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from glob import escape

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Report
from graphopt.compiler.budget.amounts import TIMED
from graphopt.compiler.ladder import Lowered
from graphopt.compiler.work import Work
from graphopt.evaluation.kernel_costs import KernelCosts, PartCost
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import is_quantized
from graphopt.utils.errors import GraphoptError
from graphopt.utils.quantities import few
from graphopt.utils.timings import Stage

WORTH = 0.03  # of the time of a call: what the table has to promise before a second network is made
SEEN = 0.05  # milliseconds: what it has to promise at least; clocks count in thousandths
KEPT = 0.98  # of the time of a call: what the second network takes at most, to be kept
NAMED = 4  # parts that a note lists


def applies(work: Work) -> bool:
    """Whether parts may stay in float: for `host`, where latency is measured and a recipe quantizes the whole of the original."""
    shrinking, quantization = work.options.shrinking, work.options.quantization
    timed = {*TIMED} & {*(shrinking.budget or ())}  # where layers in float are a choice
    special = (shrinking.keep_macs, shrinking.max_latency, quantization.max_drop, quantization.average_bits)
    chosen = bool(timed) or any(
        option is not None for option in (*special, quantization.weight_only, work.request.train)
    )
    measured = work.options.measurement.measure and work.options.measurement.device is None
    quantized = (
        is_quantized(work.original) or work.request.dump is not None
    )  # the second network would dump over the first
    return work.target.name == "host" and measured and not (chosen or quantized or work.data.one_shot)


def slower_in_integer(work: Work, artifact: Artifact) -> list[PartCost]:
    """The parts that had better stay in float; none where that promises nearly nothing, or the runtime tells no times."""
    graph, floating = work.floating(work.target)
    for each in (artifact, floating):
        each.set_threads(work.options.measurement.threads)
    try:
        costs = KernelCosts.measure(artifact, floating, graph)
    except GraphoptError:
        return []
    parts = costs.better_in_float()
    sites = {site for part in parts for site in part.sites}
    if all(graph.site(node) in sites for node in graph.calls() if Layer.of(node)):
        return []  # nothing would be left to quantize; where integer is slower as a whole, the report warns
    worth = max(SEEN, WORTH * sum(part.integer_ms for part in costs.parts))
    return parts if costs.gain_ms(parts) > worth else []


def leave_in_float(
    work: Work, lowered: Lowered, lower: Callable[[Work], Lowered], begun: Report
) -> tuple[Work, Lowered]:
    """The work and its artifact, or those with some parts in float, where that is faster.

    Args:
        lower: runs the passes of a work, and lowers its graph.
        begun: the report as it was before any pass.
    """
    start = time.perf_counter()
    parts = slower_in_integer(work, lowered.artifact)
    if not parts:
        return work, lowered
    other = _in_float(work, parts, begun)
    try:
        tried = lower(other)
    except GraphoptError as error:
        work.report.notes.append(f"{len(parts)} parts that are slower in integer here stay so: {error}")
        return work, lowered
    whole, mixed = work.milliseconds(lowered.artifact, tried.artifact)
    names = few([part.name for part in parts], NAMED)
    told = f"{len(parts)} part{'s' if len(parts) > 1 else ''} whose kernels are slower in integer here ({names})"
    if mixed > KEPT * whole:
        note = f"{told} are in integer all the same: with them in float a call takes {mixed:.3g} ms, not {whole:.3g}"
    else:
        note = f"{told} stay in float: a call takes {mixed:.3g} ms in place of {whole:.3g}"
        work, lowered = other, tried
    work.report.notes.append(note)
    work.timings.stages.append(Stage("layers in float, tried", time.perf_counter() - start))
    return work, lowered


def _in_float(work: Work, parts: list[PartCost], begun: Report) -> Work:
    """The same work from the original on, with these parts in float."""
    quantization = work.options.quantization
    sites = {escape(site): None for part in parts for site in part.sites}
    formats = {**sites, **(quantization.formats or {})}
    options = replace(work.options, quantization=replace(quantization, formats=formats))
    request = replace(work.request, options=options)
    return replace(work, request=request, graph=work.original.clone(), report=copy.deepcopy(begun))
