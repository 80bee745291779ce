"""Where buffers lie in one workspace: those that live at the same time do not overlap, others share memory.

A buffer lives from the call that writes it to the last that reads it, both included: a kernel's result must not share memory
with what it reads. Where a kernel may write its result over an operand (a sum over one of its terms) and nothing reads that
operand later, the two are one region of memory that lives as long as both. The largest are placed first, each at the lowest
offset that is free while it lives.

Paper:  Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", "greedy by size".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from graphopt.backends.tvm.bare.calls import Calls, Slot

ALIGNMENT = 64  # bytes: of vectors and cache lines
NOTHING: Mapping[str, int] = {}
Key = tuple[str, int, int]  # ("buffer", number, 0), or ("scratch", call, number)


class Life(NamedTuple):
    """A region of memory: its bytes, and the first and last call that use it."""

    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Workspace:
    """Attributes:
    offsets: of each buffer; None for one that nothing uses.
    scratch: of each call, offsets of the memory its kernel wants for itself.
    bytes: of all of it.
    regions: what lies in it, buffers that share their memory as one.
    """

    offsets: tuple[int | None, ...]
    scratch: tuple[tuple[int, ...], ...]
    bytes: int
    regions: Mapping[Key, Life]


def arranged(
    calls: Calls,
    scratch: Mapping[str, Sequence[int]],
    over: Mapping[str, int] = NOTHING,
    kept: Sequence[tuple[Slot, int]] = (),
) -> Workspace:
    """Place every buffer.

    Args:
        scratch: bytes that a kernel wants for itself while it runs.
        over: for kernels that may write their result over an operand, the number of that operand among what they read.
        kept: places that are copied in front of a call, and the number of that call.
    """
    lives = _lives(calls, kept)
    shared = _shared(calls, lives, over)
    regions: dict[Key, Life] = {}
    for number, life in lives.items():
        key = ("buffer", shared.get(number, number), 0)
        own = regions.get(key, life)
        regions[key] = Life(life.bytes, min(own.first, life.first), max(own.last, life.last))
    for time, call in enumerate(calls.calls):
        regions |= {("scratch", time, n): Life(size, time, time) for n, size in enumerate(scratch.get(call.kernel, ()))}
    at = _placed(regions)
    return Workspace(
        tuple(at.get(("buffer", shared.get(i, i), 0)) for i in range(len(calls.buffers))),
        tuple(
            tuple(at["scratch", time, n] for n in range(len(scratch.get(call.kernel, ()))))
            for time, call in enumerate(calls.calls)
        ),
        max((offset + regions[key].bytes for key, offset in at.items()), default=0),
        regions,
    )


def _lives(calls: Calls, kept: Sequence[tuple[Slot, int]]) -> dict[int, Life]:
    """Of each buffer that is used; one that is copied to an output lives until all calls are done."""
    lives: dict[int, Life] = {}
    ends = [(place, len(calls.calls)) for _, place in calls.copies]
    uses = [(place, time) for time, call in enumerate(calls.calls) for place in (*call.reads, *call.writes)]
    for place, time in (*uses, *ends, *kept):
        if place.kind == "buffer":
            life = lives.get(place.number, Life(calls.buffers[place.number], time, time))
            lives[place.number] = Life(life.bytes, life.first, max(life.last, time))
    return lives


def _shared(calls: Calls, lives: Mapping[int, Life], over: Mapping[str, int]) -> dict[int, int]:
    """Buffer -> the earlier one whose memory it takes, where that is another."""
    found: dict[int, int] = {}
    for time, call in enumerate(calls.calls):
        if call.kernel not in over or len(call.writes) != 1:
            continue
        operand, result = call.reads[over[call.kernel]], call.writes[0]
        if _replaced(operand, result, call.reads, lives, time):
            found[result.number] = found.get(operand.number, operand.number)
    return found


def _replaced(operand: Slot, result: Slot, reads: Sequence[Slot], lives: Mapping[int, Life], time: int) -> bool:
    """Whether a result may take an operand's memory: of the same size, and read by this call last and once."""
    if operand.kind != "buffer" or result.kind != "buffer" or reads.count(operand) != 1:
        return False
    before, after = lives[operand.number], lives[result.number]
    return before.bytes == after.bytes and before.last == time and after.first == time


def _placed(regions: Mapping[Key, Life]) -> dict[Key, int]:
    """Offset of each region."""
    at: dict[Key, int] = {}
    for key, (size, first, last) in sorted(regions.items(), key=lambda item: (-item[1].bytes, item[0])):
        others = ((offset, regions[k]) for k, offset in at.items())
        taken = sorted((offset, life.bytes) for offset, life in others if life.first <= last and first <= life.last)
        offset = 0
        for start, length in taken:
            if offset + size <= start:
                break
            offset = max(offset, -(-(start + length) // ALIGNMENT) * ALIGNMENT)
        at[key] = offset
    return at
