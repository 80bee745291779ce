"""Calls in stages: those of several modules one behind the other, or of one module as far as each of its answers needs them.

merged       networks of one task        every stage reads the inputs; equal kernels and constants of two stages are one
partitioned  a network with exits        a call belongs to the first answer that needs it; what later ones read stays where it is

The stages share one list of kernels, constants and buffers, so that one workspace is planned over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import tvm
import tvm_ffi

from graphopt.backends.tvm.bare.calls import Array, Call, Calls, Slot
from graphopt.backends.tvm.bare.fullest import layers
from graphopt.policies import Network

Sites = Sequence[tuple[str, str]]  # kernels in the order in which they are called, each with its layer


class Copy(NamedTuple):
    """An output that is another's memory, copied at the end of a stage."""

    output: int
    place: Slot


@dataclass(frozen=True)
class Stages:
    """Attributes:
    calls: of all stages, in order; output i is the i-th of an answer, which a later stage overwrites.
    ends: of each stage, how many calls there are until it has answered.
    copies: of each stage.
    sites: the kernel and the layer of each call.
    """

    calls: Calls
    ends: tuple[int, ...]
    copies: tuple[tuple[Copy, ...], ...]
    sites: tuple[tuple[str, str], ...]

    @property
    def kept(self) -> list[tuple[Slot, int]]:
        """What is copied behind the last call of a stage, and the number of the call behind that."""
        return [(c.place, end) for end, each in zip(self.ends, self.copies, strict=True) for c in each]

    @property
    def handing(self) -> set[int]:
        """The stages that write what a later one reads."""
        writer: dict[Slot, int] = {}
        found, begin = set[int](), 0
        for stage, (end, copies) in enumerate(zip(self.ends, self.copies, strict=True)):
            calls = self.calls.calls[begin:end]
            writer |= {place: stage for call in calls for place in call.writes if place.kind == "buffer"}
            read = {*(place for call in calls for place in call.reads), *(copy.place for copy in copies)}
            found |= {writer[place] for place in read if place in writer} - {stage}
            begin = end
        return found


# ---- Several modules ------------------------------------------------------------------------------------------------


def merged(parts: Sequence[Calls], network: Network, sites: Sequence[Sites]) -> Stages:
    """Modules of stages that read nothing but the inputs."""
    assert not network.handing - {-1}
    kernels = _Kernels()
    calls: list[Call] = []
    buffers: list[int] = []
    constants: list[Array] = []
    named: list[tuple[str, str]] = []
    ends, copies = [], []
    for number, part in enumerate(parts):
        inputs = [source for _, source in network.reads[number]]
        before = {"buffer": len(buffers), "constant": len(constants)}

        def moved(place: Slot, inputs: list[int] = inputs, before: dict[str, int] = before) -> Slot:
            if place.kind == "input":
                return Slot("input", inputs[place.number])
            return Slot(place.kind, place.number + before.get(place.kind, 0))

        functions = {variable.name_hint: function for variable, function in part.kernels.functions_items()}
        names = {name: kernels.add(name, functions[name]) for name in functions}
        for call, layer in zip(part.calls, layers(part, sites[number]), strict=True):
            reads, writes = (tuple(map(moved, places)) for places in (call.reads, call.writes))
            calls.append(Call(names[call.kernel], reads, writes))
            named.append((calls[-1].kernel, f"{layer} of stage {number}"))
        buffers += part.buffers
        constants += part.constants
        ends.append(len(calls))
        copies.append(tuple(Copy(output, moved(place)) for output, place in part.copies))
    module = tvm.IRModule(kernels.functions)
    return Stages(
        Calls(module, tuple(calls), tuple(buffers), tuple(constants)), tuple(ends), tuple(copies), tuple(named)
    )


class _Kernels:
    """Functions of TIR by name, equal ones once."""

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {}
        self._alike: dict[int, list[str]] = {}

    def add(self, name: str, function: Any) -> str:
        """The name that it goes by here."""
        plain = function.without_attr("global_symbol") if "global_symbol" in (function.attrs or {}) else function
        alike = self._alike.setdefault(tvm_ffi.structural_hash(plain), [])
        for known in alike:
            if tvm_ffi.structural_equal(self.functions[known], plain):
                return known
        free = name
        while free in self.functions:
            free += "_"
        self.functions[free] = plain
        alike.append(free)
        return free


# ---- One module -----------------------------------------------------------------------------------------------------


def partitioned(calls: Calls, answer_bytes: Sequence[int], sites: Sites) -> Stages:
    """A module whose outputs are the answers of its stages, the first stage first.

    Args:
        answer_bytes: of each output.
    """
    belongs = _stages(calls, len(answer_bytes))
    order = sorted(range(len(calls.calls)), key=belongs.__getitem__)
    ends = tuple(sum(stage <= n for stage in belongs) for n in range(len(answer_bytes)))
    buffers, copied = list(calls.buffers), dict(calls.copies)
    answers: dict[Slot, Slot] = {}  # where what was an output is written
    for stage, size in enumerate(answer_bytes):
        place = Slot("output", stage)
        uses = [s for c, s in zip(calls.calls, belongs, strict=True) if place in (*c.reads, *c.writes)]
        if {stage} != {*uses, stage, *(n for n, other in calls.copies if other == place)}:
            answers[place] = Slot("buffer", len(buffers))
            buffers.append(size)
            copied[stage] = place
        else:
            answers[place] = Slot("output", 0)
    moved = [[tuple(answers.get(p, p) for p in ps) for ps in (call.reads, call.writes)] for call in calls.calls]
    named = layers(calls, sites)
    chosen = tuple(Call(calls.calls[n].kernel, *moved[n]) for n in order)
    copies = tuple(
        (Copy(0, answers.get(copied[n], copied[n])),) if n in copied else () for n in range(len(answer_bytes))
    )
    return Stages(
        replace(calls, calls=chosen, buffers=tuple(buffers), copies=()), ends, copies,
        tuple((calls.calls[n].kernel, named[n]) for n in order),
    )  # fmt: skip


def _stages(calls: Calls, count: int) -> list[int]:
    """Of each call the first answer that needs it."""
    writer = {place: n for n, call in enumerate(calls.calls) for place in call.writes}
    copied, found = dict(calls.copies), dict[int, int]()
    for stage in range(count):
        waiting = [copied.get(stage, Slot("output", stage))]
        while waiting:
            number = writer.get(waiting.pop())
            if number is not None and number not in found:
                found[number] = stage
                waiting += calls.calls[number].reads
    return [found.get(number, count - 1) for number in range(len(calls.calls))]
