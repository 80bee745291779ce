"""The loop that runs passes.

A pipeline is a plain list of passes. After every pass `run` sweeps dead code, checks the graph and its shapes, and
for passes that promise it compares the outputs with those before, so that a pass that lies is named on the spot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, Pass, Shortfall
from graphopt.ir.structure import tensors
from graphopt.passmanager.plain_options import options
from graphopt.passmanager.step import Step
from graphopt.utils.errors import GraphoptError, InputError, PassError, first_line
from graphopt.utils.files import make_folder, write_atomically
from graphopt.utils.memory import give_back
from graphopt.utils.progress import track

LOG = logging.getLogger(__name__)
TOLERANCE = 1e-4  # relative to the largest output


def run(
    passes: Sequence[Pass],
    graph: Graph,
    *,
    verify: bool = True,
    dump: str | Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    reference: list[Tensor] | None = None,
) -> list[Step]:
    """Apply passes in order, in place, checking after each.

    Args:
        passes: a plain list; lists join with `+`.
        graph: edited in place.
        verify: run the graph on its example after each pass; compare where the pass says it is exact.
        dump: a folder for `00_FoldBatchNorm.txt`, ...: the canonical text after each pass (`capture.txt` before the first).
        on_step: called with each finished step.
        reference: the outputs that SQNR compares with, for a pipeline that goes on from another; those at the start if not given.

    Returns:
        One `Step` per pass: changes, seconds, parameters, MACs, weight bytes, SQNR against `reference`.

    Raises:
        InputError: something among them is no pass, or the folder cannot be written.
        PassError: a pass broke the graph, or moved the outputs although it says it is exact; names the pass and how to
            reproduce it.
    """
    _check(passes)
    folder = make_folder(dump) if dump is not None else None
    if folder is not None:
        write_atomically(folder / "capture.txt", str(graph).encode() + b"\n")
    before = outputs(graph) if verify else []
    reference = before if reference is None else reference
    steps = []
    for number, transform in enumerate(track(passes, "passes")):
        name = type(transform).__name__
        LOG.debug("pass %d of %d: %r", number + 1, len(passes), transform)
        start = time.perf_counter()
        changes = _apply(transform, graph, number)
        seconds = time.perf_counter() - start
        after = outputs(graph) if verify and changes else before
        if verify and transform.exact and changes:
            _compare(transform, number, before, after)
        before = after
        steps.append(_step(name, transform, changes, seconds, graph, reference, after))
        _log(number, len(passes), steps[-1])
        give_back(steps[-1].weight_bytes)
        if folder is not None:
            write_atomically(folder / f"{number:02}_{name}.txt", str(graph).encode() + b"\n")
        if on_step is not None:
            on_step(steps[-1])
    return steps


def _log(number: int, count: int, step: Step) -> None:
    LOG.info("pass %d of %d: %s, %d changes in %.2f s", number + 1, count, step.name, len(step.changes), step.seconds)
    for site, what in step.changes:
        LOG.debug("%s, %s: %s", step.name, site, what)
    for what in step.short:
        LOG.warning("%s: %s", step.name, what)


def _check(passes: Sequence[Pass]) -> None:
    """Before any of them runs."""
    if isinstance(passes, str) or not isinstance(passes, Sequence):
        raise InputError(f"passes are a list, got {passes!r}; a text of passes is read by graphopt.compiler.pipeline")
    for number, transform in enumerate(passes):
        if not callable(transform) or not isinstance(getattr(transform, "exact", None), bool):
            raise InputError(
                f"passes[{number}] is {transform!r}, which is no pass: a pass is called with the graph, returns its changes, and "
                "has `exact`, whether answers stay the same; see docs/internals/a-pass.md"
            )


def _apply(transform: Pass, graph: Graph, number: int) -> list[Change]:
    try:
        changes = transform(graph)
        if changes:
            graph.refresh()
    except (GraphoptError, ValueError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise PassError(
            f"pass {number} {_shown(transform)} broke the graph: {first_line(error)}; reproduce with passes[:{number + 1}]"
        ) from error
    return changes


def _step(
    name: str,
    transform: Pass,
    changes: list[Change],
    seconds: float,
    graph: Graph,
    reference: list[Tensor],
    now: list[Tensor],
) -> Step:
    return Step(
        name=name,
        options=options(transform),
        changes=[(change.site, change.what) for change in changes],
        short=[change.what for change in changes if isinstance(change, Shortfall)],
        seconds=seconds,
        parameters=cost.parameters(graph),
        macs=cost.macs(graph),
        weight_bytes=cost.weight_bytes(graph),
        sqnr_db=cost.sqnr(reference, now) if reference and cost.same_form(reference, now) else None,
    )


def outputs(graph: Graph) -> list[Tensor]:
    """The float outputs on the graph's own example, flat."""
    with torch.no_grad():
        result = graph(*graph.example.args, **graph.example.kwargs)
    return tensors(result)


def _compare(transform: Pass, number: int, before: list[Tensor], after: list[Tensor]) -> None:
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            raise PassError(
                f"pass {number} {_shown(transform)} changed an output's shape from {tuple(old.shape)} to {tuple(new.shape)}"
            )
        old, new = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (old, new))
        same = (old == new) | (old.isnan() & new.isnan())  # infinities and what is no number, from the example, too
        reach = max(float(old.abs().nan_to_num(posinf=0.0).max()) if old.numel() else 0.0, 1e-12)
        moved = 0.0 if bool(same.all()) else float((old - new).abs()[~same].max())
        if not moved <= TOLERANCE * reach:
            raise PassError(
                f"pass {number} {_shown(transform)} says it is exact but moved the output by {moved:.2e} "
                f"(of {reach:.2e}); reproduce with passes[:{number + 1}]"
            )


def _shown(transform: Any) -> str:
    """The pass with its options, long values shortened."""
    shown = repr(transform)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def first_bad(passes: Sequence[Pass], graph: Graph, good: Callable[[Graph], bool]) -> int | None:
    """The index of the first pass after which `good(graph)` is false; None where all is well to the end.

    Works on copies; the graph stays as it is. By bisection, so `good` runs about log2(len(passes)) times.
    """

    def holds(count: int) -> bool:
        copy = graph.clone(share_weights=True)
        run(passes[:count], copy, verify=False)
        return good(copy)

    if holds(len(passes)):
        return None
    low, high = 0, len(passes)  # holds(low), not holds(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high - 1
