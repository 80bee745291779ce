"""The target `host` may run through several runtimes. Each gets the model, and the one that is fastest here is kept.

They differ in more than speed: what a runtime computes in integer decides where quantizers go, so each candidate goes through all
passes from the captured graph on. Time is measured in turn, on the example, and the float original's in ONNX Runtime.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from graphopt.artifacts import registry
from graphopt.compiler.ladder import Lowered
from graphopt.compiler.options import Options
from graphopt.compiler.work import Work
from graphopt.targets import Target, host, host_runtimes
from graphopt.utils.errors import GraphoptError, InputError
from graphopt.utils.timings import Stage

LOG = logging.getLogger(__name__)


def candidates(target: Target, options: Options) -> list[Target]:
    """What to try for a target: itself, and for `host` each runtime that is worth it.

    Raises:
        InputError: a runtime was asked for that this machine does not have, or another target than `host`.
    """
    measurement = options.measurement
    if measurement.runtime is not None:
        if target.name != "host":
            raise InputError(
                f"runtime={measurement.runtime!r} chooses for the target 'host'; {target.name!r} runs through "
                f"{target.runtime.name}, leave it out"
            )
        return [host(measurement.runtime)]
    if target.name != "host" or target != host() or measurement.device is not None:
        return [target]
    if options.tuning.asked_for:  # which only compiled kernels can be
        return [host("tvm")] if "tvm" in host_runtimes() else [target]
    if not measurement.measure:
        return [target]
    return [target, *(host(name) for name in host_runtimes()[1:] if registry.available(name))]


def fastest(works: list[Work], lower: Callable[[Work], Lowered]) -> tuple[Work, Lowered]:
    """Lower through every runtime, and return the work of the one that is faster, whose report names them all.

    Args:
        works: of the runtimes; the first one has to succeed.
        lower: runs the passes of a work, and lowers its graph.
    """
    done: list[tuple[Work, Lowered]] = []
    refused: list[str] = []
    seconds: dict[str, float] = {}
    for work in works:
        begin = time.perf_counter()
        LOG.info("through %s", work.runtime)
        try:
            work.backend.check_graph(work.original)
            done.append((work, lower(work)))
        except GraphoptError as error:
            if not done:
                raise
            refused.append(f"{work.runtime} does not take it: {error}")
            LOG.info("%s", refused[-1])
        seconds[work.runtime] = time.perf_counter() - begin
    times = _milliseconds(done)
    kept, lowered = min(done, key=lambda pair: times[pair[0].runtime])
    _report(kept, times, refused)
    kept.timings.stages += [Stage(f"{name}, not kept", s) for name, s in seconds.items() if name != kept.runtime]
    return kept, lowered


def _milliseconds(done: list[tuple[Work, Lowered]]) -> dict[str, float]:
    """What a call takes in each runtime, by its name."""
    names = [work.runtime for work, _ in done]
    if len(names) == 1:
        return dict.fromkeys(names, 0.0)
    work = done[0][0]
    return dict(zip(names, work.milliseconds(*(lowered.artifact for _, lowered in done)), strict=True))


def _report(kept: Work, times: dict[str, float], refused: list[str]) -> None:
    """What the report says of the choice."""
    if len(times) > 1:
        shown = ", ".join(f"{ms:.3g} ms through {name}" for name, ms in times.items())
        kept.report.notes.append(
            f"the target 'host': {shown} (medians); {kept.runtime} is kept, runtime=... decides by hand"
        )
    kept.report.notes += refused
