"""What fills a workspace: the tensors and temporaries that lie in it at the call where they take most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from graphopt.backends.tvm.bare.calls import Calls
from graphopt.backends.tvm.bare.workspace import Key, Life


class Fullest(NamedTuple):
    """Attributes:
    call: the layer that runs then.
    tensors: (what it is, bytes), the largest first.
    """

    call: str
    tensors: list[tuple[str, int]]


def fullest(calls: Calls, regions: Mapping[Key, Life], sites: Sequence[tuple[str, str]]) -> Fullest | None:
    """The call whose regions of memory take most; None where nothing lies in memory.

    `sites`: kernels in the order in which they are called, each with its layer; other kernels go by their own name.
    """
    if not regions:
        return None
    named = layers(calls, sites)

    def alive(time: int) -> dict[Key, int]:
        return {key: life.bytes for key, life in regions.items() if life.first <= time <= life.last}

    time = max(range(len(calls.calls)), key=lambda t: sum(alive(t).values()))
    written = {place.number: t for t, call in enumerate(calls.calls) for place in call.writes if place.kind == "buffer"}

    def words(key: Key) -> str:
        kind, number, _ = key
        return f"temporary of {named[number]}" if kind == "scratch" else f"result of {named[written[number]]}"

    found = sorted(alive(time).items(), key=lambda item: (-item[1], item[0]))
    return Fullest(named[time], [(words(key), size) for key, size in found])


def layers(calls: Calls, sites: Sequence[tuple[str, str]]) -> list[str]:
    """What each call computes: its layer, or its kernel where that is not known."""
    waiting: dict[str, list[str]] = {}
    for kernel, site in sites:
        waiting.setdefault(kernel, []).append(site)
    return [(waiting[c.kernel].pop(0) if waiting.get(c.kernel) else "") or c.kernel for c in calls.calls]
