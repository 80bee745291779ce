"""A file and its fix side by side: how far answers differ, and how long both take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphopt.backends.onnxruntime.artifact import open_session
from graphopt.backends.onnxruntime.audit.work import TYPES, Feeds
from graphopt.data.batches import Input, Signature, to_tensors
from graphopt.data.calibration import Calibration
from graphopt.evaluation.compliance.model import Model
from graphopt.evaluation.file_audit import Fixed
from graphopt.ir import cost
from graphopt.targets import Runtime
from graphopt.targets.machine import architecture


def signature(session: Any, feeds: Feeds) -> Signature:
    """What a session takes, with the sizes of these inputs where its own are free."""
    taken = session.get_inputs()
    free = [bool(i.shape) and not isinstance(i.shape[0], int) for i in taken]
    first = taken[0].shape[:1] if taken else []
    inputs = [
        Input(
            i.name, (i.name,), feeds[i.name].shape, torch.from_numpy(np.zeros(0, TYPES[i.type])).dtype,
            f or (not any(free) and i.shape[:1] == first),
        )
        for i, f in zip(taken, free, strict=True)
    ]  # fmt: skip
    return Signature(tuple(inputs), any(free))


def calibration(source: Any, taken: Signature) -> list[Feeds]:
    """Typical inputs by name, batch by batch."""
    names = [i.name for i in taken.inputs]
    return [dict(zip(names, (t.numpy() for t in batch), strict=True)) for batch in Calibration(source, taken)]


def example(source: Any, taken: Signature) -> Feeds:
    """One input by name."""
    tensors = to_tensors(source, list(taken.inputs), "the example")
    return {i.name: t.numpy() for i, t in zip(taken.inputs, tensors, strict=True)}


def difference(before: Path, after: Path, feeds: Feeds, runtime: Runtime) -> dict[str, tuple[float, str]]:
    """The largest difference of every output that is a number: in steps of its grid, or relative to its largest value."""
    signed = runtime.architecture == "aarch64"
    sessions = [open_session(path, defaults=True, signed=signed) for path in (before, after)]
    names = [output.name for output in sessions[0].get_outputs()]
    old, new = (session.run(names, feeds) for session in sessions)
    model, found = Model.read(before), {}
    for name, a, b in zip(names, old, new, strict=True):
        if a.dtype.kind != "f":
            found[name] = (float(np.max(np.abs(a.astype(np.int64) - b.astype(np.int64)), initial=0)), "codes")
            continue
        gap, grid = float(np.max(np.abs(a - b), initial=0)), model.grid(name)
        if grid is not None and grid.scale is not None and grid.scale.size == 1:
            found[name] = (gap / float(grid.scale.reshape(())), "steps")
        else:
            found[name] = (gap / max(float(np.max(np.abs(a), initial=0)), 1e-30), "of the largest value")
    return found


def time(fixed: Fixed, feeds: Feeds, rounds: int = 100) -> None:
    """Note the medians of both, taken in turn on one thread, where the machine at hand is the target."""
    target = fixed.before.target
    if target.runtime.architecture != architecture():
        fixed.note = f"the time on {target.name} was not measured: it cannot run here"
        return
    before, after = (open_session(path, defaults=True, signed=False) for path in (fixed.before.path, fixed.path))
    calls = {"before": lambda: before.run(None, feeds), "after": lambda: after.run(None, feeds)}
    taken = cost.timings(calls, repeats=rounds, warmup=5, budget_seconds=10)
    fixed.milliseconds = (taken.median("before"), taken.median("after"))
    fixed.speedup = taken.speedup("before", "after")
