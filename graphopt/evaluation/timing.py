"""How long an artifact takes, beside the float original."""

from __future__ import annotations

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Latency, Report
from graphopt.artifacts.report_text import slower
from graphopt.ir import cost as measures
from graphopt.ir.graph import Example
from graphopt.targets import Runtime, architecture, machine_here


def untimed(runtime: Runtime, artifact: Artifact) -> str:
    """Why its latency cannot be measured where it runs; empty where it can."""
    if artifact.device:
        return f"{artifact.device} takes other times than the hardware" if artifact.emulated else ""
    if architecture() != runtime.architecture:
        return f"the target is {runtime.architecture}, this machine is {architecture()}"
    if runtime.machine not in (None, machine_here()):
        return f"the target has the kernels of {runtime.machine}, this machine those of {machine_here()}"
    return artifact.refusal


def clock(report: Report, before: Artifact, after: Artifact, example: Example, threads: int) -> None:
    """Measure the time of one call of both, in turn, and warn where the result is slower.

    Args:
        example: the inputs.
        threads: of the runtime.
    """
    args, kwargs = example.args, example.kwargs
    for artifact in (before, after):
        artifact.set_threads(threads)
    calls = {
        "before": lambda: before.milliseconds(*args, **kwargs),
        "after": lambda: after.milliseconds(*args, **kwargs),
    }
    taken = measures.timings(calls, clocked=True)
    report.latency = Latency(
        before_ms=taken.median("before"),
        after_ms=taken.median("after"),
        speedup=taken.speedup("before", "after"),
        before=f"{before.manifest.runtime}, float",
        after=f"{after.manifest.runtime}, {_arithmetic(report)}",
        threads=threads,
        host=after.device or measures.host_cpu(),
    )
    if report.integer_macs and (warning := slower(report.latency, report.float_operators)):
        report.warnings.append(warning)


def _arithmetic(report: Report) -> str:
    if report.integer_macs or not (report.weight_only_macs or report.float16_macs):
        return "integer"
    return "float16" if report.float16_macs else "weights in few bits"
