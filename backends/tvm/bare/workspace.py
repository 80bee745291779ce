"""Where buffers lie in one workspace: those that live at the same time do not overlap, others share memory.

A buffer lives from the call that writes it to the last that reads it, both included: a kernel's result must not share memory
with what it reads. The largest are placed first, each at the lowest offset that is free while it lives.

Paper:  Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", "greedy by size".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.backends.tvm.bare.calls import Calls

ALIGNMENT = 64  # bytes: of vectors and cache lines


@dataclass(frozen=True)
class Workspace:
    """Attributes:
    offsets: of each buffer; None for one that nothing uses.
    scratch: of each call, offsets of the memory its kernel wants for itself.
    bytes: of all of it.
    """

    offsets: tuple[int | None, ...]
    scratch: tuple[tuple[int, ...], ...]
    bytes: int


def arranged(calls: Calls, scratch: Mapping[str, Sequence[int]]) -> Workspace:
    """Place every buffer; `scratch`: bytes that a kernel wants for itself while it runs."""
    lives: dict[tuple[str, int, int], tuple[int, int, int]] = {}  # what -> (bytes, first call, last call)
    for time, call in enumerate(calls.calls):
        for place in (*call.reads, *call.writes):
            if place.kind == "buffer":
                key = ("buffer", place.number, 0)
                first = lives[key][1] if key in lives else time
                lives[key] = calls.buffers[place.number], first, time
        for number, size in enumerate(scratch.get(call.kernel, ())):
            lives["scratch", time, number] = size, time, time
    for _, place in calls.copies:
        if place.kind == "buffer":
            size, first, _ = lives["buffer", place.number, 0]
            lives["buffer", place.number, 0] = size, first, len(calls.calls)
    at: dict[tuple[str, int, int], int] = {}
    for key, (size, first, last) in sorted(lives.items(), key=lambda item: (-item[1][0], item[0])):
        taken = sorted((at[k], lives[k][0]) for k in at if lives[k][1] <= last and first <= lives[k][2])
        offset = 0
        for start, length in taken:
            if offset + size <= start:
                break
            offset = max(offset, -(-(start + length) // ALIGNMENT) * ALIGNMENT)
        at[key] = offset
    return Workspace(
        tuple(at.get(("buffer", i, 0)) for i in range(len(calls.buffers))),
        tuple(
            tuple(at["scratch", time, n] for n in range(len(scratch.get(call.kernel, ()))))
            for time, call in enumerate(calls.calls)
        ),
        max((offset + lives[key][0] for key, offset in at.items()), default=0),
    )
