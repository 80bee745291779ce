"""What each kernel takes: TVM's virtual machine calls a function before and behind everything that it calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from graphopt.artifacts.profile import WARM, KernelTime, middle

SITES = "kernels"  # in a manifest's options: kernels in the order of their calls, each with its layer
MACHINE = "vm.builtin."  # what the virtual machine does itself


def kernel_times(
    machine: Any, run: Callable[[], object], runs: int, sites: Sequence[Sequence[str]]
) -> list[KernelTime]:
    """The time of each call of a kernel, in order.

    Args:
        machine: a `relax.VirtualMachine`, which is watched from then on.
        run: one call of it.
        sites: kernel and layer of the calls that were emitted; the compiler adds others.
    """
    names: list[str] = []
    taken: list[list[float]] = []
    start = 0

    def watch(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        nonlocal start
        now = time.perf_counter_ns()
        if before:
            start = now
        elif not name.startswith(MACHINE):
            taken[-1].append((now - start) / 1e6)
            names.append(name)
        return 0

    machine._set_instrument(watch)
    for _ in range(runs + WARM):
        names.clear()
        taken.append([])
        run()
    typical = [middle(each) for each in zip(*taken[WARM:], strict=True)]
    layers = _layers(names, sites)
    return [KernelTime(name, ms, layer) for name, ms, layer in zip(names, typical, layers, strict=True)]


def _layers(names: Sequence[str], sites: Sequence[Sequence[str]]) -> list[str]:
    """For each call its layer; of none where calls were left out or changed places, so that they are not as emitted."""
    found, rest = [], list(sites)
    for name in names:
        found.append(rest.pop(0)[1] if rest and rest[0][0] == name else "")
    return [""] * len(names) if rest else found
