"""Where the time of an artifact goes: each kernel that its runtime ran, in order, and the layer that it computes.

    profile = artifact.profile(images)
    print(profile)                      the kernels by time, and all together
    profile.layers()                    {"layer1.0.conv1": 0.042, ...}: milliseconds

The times are the runtime's own (ONNX Runtime's profiler), or taken around each of its calls (TVM); asking for them costs time
itself, so the whole is measured without it, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table

if TYPE_CHECKING:
    from graphopt.artifacts.report import Report

SHOWN = 25  # kernels that are printed
WARM = 3  # runs before those that count


def middle(ms: Sequence[float]) -> float:
    """The mean of the middle half."""
    cut = len(ms) // 4
    return statistics.fmean(sorted(ms)[cut : len(ms) - cut])


@dataclass(frozen=True)
class KernelTime:
    """One call of a kernel.

    Attributes:
        kernel: what the runtime calls it: `QLinearConv`, `conv1`.
        ms: milliseconds, the mean of the middle half of all runs: some clocks count in whole microseconds.
        layer: the part of the model that it computes; empty where that is not known, as of copies that the runtime added.
    """

    kernel: str
    ms: float
    layer: str = ""


@dataclass(frozen=True)
class Profile(Printed):
    """What a call of an artifact takes, and its kernels.

    Attributes:
        kernels: in the order in which they run.
        call_ms: milliseconds of a whole call that is not watched, the median of all runs.
        runs: of which each figure is made.
        runtime, threads: what ran.
    """

    kernels: Sequence[KernelTime]
    call_ms: float
    runs: int
    runtime: str
    threads: int

    @property
    def kernels_ms(self) -> float:
        """Of all kernels together; what a call takes beside that goes to the runtime, and to copies of inputs and outputs."""
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def watching_ms(self) -> float:
        """What being watched adds to a kernel: by how much all of them exceed a call that is not watched, for each."""
        return max(0.0, self.kernels_ms - self.call_ms) / max(1, len(self.kernels))

    def layers(self) -> dict[str, float]:
        """Milliseconds by layer, in order; under the empty name what belongs to none."""
        found: dict[str, float] = {}
        for kernel in self.kernels:
            found[kernel.layer] = found.get(kernel.layer, 0.0) + kernel.ms
        return found

    def annotate(self, report: Report) -> None:
        """Write the time of each call into a report; conversions and copies count for the call whose value they take."""
        times: dict[int, float] = {}
        numbers = {call.value: number for number, call in enumerate(report.network)}
        for name, ms in self.layers().items():
            known = name
            while known and known not in numbers:
                known = known.rpartition(".")[0]
            if known:
                times[numbers[known]] = times.get(numbers[known], 0.0) + ms
        report.network = [replace(call, milliseconds=times.get(i)) for i, call in enumerate(report.network)]

    def blocks(self) -> list[Block]:
        whole, threads = self.kernels_ms, f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        order = sorted(self.kernels, key=lambda kernel: -kernel.ms)
        rows = [[k.layer, k.kernel, f"{k.ms:.4f}", f"{k.ms / whole:.1%}"] for k in order[:SHOWN]]
        if rest := order[SHOWN:]:
            ms = sum(kernel.ms for kernel in rest)
            rows.append([f"{len(rest)} more", "", f"{ms:.4f}", f"{ms / whole:.1%}"])
        columns = [Column("layer"), Column("kernel"), Column("ms", number=True), Column("share", number=True)]
        return [
            Line(f"{self.runtime}, {threads}: {self.call_ms:.4g} ms a call, median of {self.runs}", "title"),
            Table(columns, [*rows, ["all", f"{len(order)} kernels", f"{whole:.4f}", ""]]),
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
