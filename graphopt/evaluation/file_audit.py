"""Audit an ONNX file, whoever made it: what of it computes in integer, what in float and why, and a fix.

found = audit("model.onnx", "x86")
found.print()
found.fix("fixed.onnx").print()

What is read is what runs: for CPUs, the graph as ONNX Runtime rewrote it; for hardware with a compiler of its own, what the
file's quantizers say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.artifacts.backend import Backend
from graphopt.artifacts.registry import backend
from graphopt.evaluation.float_regions import FloatRegion
from graphopt.ir.passes import Change
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table, numbers


@dataclass
class FileAudit(Printed):
    """What a file computes in integer.

    Attributes:
        path: of the file. target: whose rules. how: what was read.
        shapes: of its inputs; counts are for these.
        integer_macs, total_macs: multiply-accumulates of convolutions, linear layers and matrix products.
        float regions: what computes in float, largest first.
        conversions: between codes and float, of values, all over the model.
        operators: how often each operator type occurs in what was read.
        saturating: layers whose sums can saturate, where the target, or the machine at hand for a target of its architecture, is
            an x86-64 CPU without VNNI.
    """

    path: Path
    target: Target
    how: str
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    integer_macs: int = 0
    total_macs: int = 0
    float_regions: list[FloatRegion] = field(default_factory=list)
    conversions: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    saturating: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of multiply-accumulates computed in integer, 0 to 1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0

    def fix(
        self,
        path: str | Path,
        *,
        calibration: Any = None,
        example: Any = None,
        measure: bool = True,
        overwrite: bool = False,
    ) -> Fixed:
        """Write a file with the same answers that computes more of them in integer, and compare the two.

        Args:
            path: of the new file. Written under another name and renamed.
            calibration: typical inputs, as `graphopt.optimize` takes them: where values lack quantizers and no range follows
                from the others, it is measured on these.
            example: the input to compare and time on, an array or one for each input; by default random numbers.
            measure: time both, where the target is the machine at hand.
            overwrite: the new file may take the place of the audited one.

        Raises:
            InputError: the place cannot be written, is the audited file, or the data do not fit.
        """
        target = Path(path).expanduser().resolve()
        if target == self.path.resolve() and not overwrite:
            raise InputError(f"{target} is the audited file itself; choose another name, or ask to overwrite it")
        return _auditor().fix(self, target, calibration, example, measure)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": str(self.path), "target": self.target.name, "read": self.how,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "integer_macs": self.integer_macs, "total_macs": self.total_macs, "integer_share": self.share,
            "conversions": self.conversions, "operators": self.operators, "saturating": self.saturating,
            "float_regions": [region.to_dict() for region in self.float_regions],
        }  # fmt: skip

    def blocks(self) -> list[Block]:
        lines = [
            f"{self.path.name} for {self.target.name}: {self.share:.1%} of {self.total_macs:,} multiply-accumulates in integer, "
            f"{len(self.float_regions)} float region{'s' * (len(self.float_regions) != 1)}, {self.conversions} conversions",
            f"read from {self.how}",
            *self.warnings(),
        ]
        shown: list[Block] = [Line(line) for line in lines]
        return [*shown, self._table()] if self.float_regions else shown

    def warnings(self) -> list[str]:
        """What the numbers do not show."""
        if not self.saturating:
            return []
        several, shown = len(self.saturating) > 1, ", ".join(self.saturating[:6])
        more = f" and {len(self.saturating) - 6} more" if len(self.saturating) > 6 else ""
        return [
            f"{len(self.saturating)} layer{'s' * several} can saturate on CPUs without VNNI, and then "
            f"answer{'s' * (not several)} something else than on others: {shown}{more}; quantize weights to 7 bits"
        ]

    def _table(self) -> Table:
        columns = [
            *numbers("#"), Column("float operators"), *numbers("MACs", "conversions"), Column("why, and what to do"),
            Column("fix"),
        ]  # fmt: skip
        rows = []
        for number, region in enumerate(self.float_regions, 1):
            names = "\n".join(f"{node.operator} {node.name}" for node in region.nodes[:6])
            more = len(region.nodes) - 6
            names += f"\nand {more} more" if more > 0 else ""
            why = "\n".join(str(reason) for reason in region.reasons)
            fixes = ", ".join(dict.fromkeys(reason.fix for reason in region.reasons if reason.fix)) or "-"
            rows.append([str(number), names, f"{region.macs:,}", str(region.conversions), why, fixes])
        return Table(columns, rows)


@dataclass
class Fixed(Printed):
    """What a fix made of a file.

    Attributes:
        path: of the new file.
        before, after: audits of both.
        applied: the rewrites, in order: the fix's name, and what it changed.
        difference: of the outputs, the largest by name and its unit: steps of the output's grid, or relative to the largest value
            where an output has none.
        milliseconds: of one call before and after, medians taken in turn on one thread; None: not measured, `note` says why.
        speedup: the median over rounds of the ratio within a round.
    """

    path: Path
    before: FileAudit
    after: FileAudit
    applied: list[tuple[str, Change]]
    difference: dict[str, tuple[float, str]]
    milliseconds: tuple[float, float] | None = None
    speedup: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": str(self.path), "before": self.before.to_dict(), "after": self.after.to_dict(),
            "applied": [{"fix": name, "node": change.site, "what": change.what} for name, change in self.applied],
            "difference": {name: {"largest": value, "unit": unit} for name, (value, unit) in self.difference.items()},
            "milliseconds": self.milliseconds, "speedup": self.speedup, "note": self.note,
        }  # fmt: skip

    def blocks(self) -> list[Block]:
        rows = [
            ["MACs in integer", f"{self.before.share:.1%}", f"{self.after.share:.1%}"],
            ["float regions", str(len(self.before.float_regions)), str(len(self.after.float_regions))],
            ["conversions", str(self.before.conversions), str(self.after.conversions)],
        ]
        if self.milliseconds is not None:
            rows.append(["ms, median", *(f"{ms:.3f}" for ms in self.milliseconds)])
        counts = Counter(name for name, _ in self.applied)
        made = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing to fix"
        end = [f"{name}: differs by {value:.3g} {unit} at most" for name, (value, unit) in self.difference.items()]
        end += [f"{self.speedup:.2f} times faster"] if self.speedup is not None else []
        end += [self.note] if self.note else []
        end += [] if self.after.float_regions else self.after.warnings()  # else among what follows
        rest = [Line(""), *self.after.blocks()] if self.after.float_regions else []
        table = Table([Column(""), *numbers("before", "after")], rows)
        return [Line(f"{self.path.name}: {made}"), table, *map(Line, end), *rest]


def audit(
    model: str | Path, target: str | Target = "host", *, shapes: Sequence[Sequence[int]] | None = None
) -> FileAudit:
    """What of an ONNX file computes in integer on a target, and why the rest does not.

    Args:
        model: an ONNX file: quantized (QDQ or integer operators), by anyone, or float; or the folder of a deployed model.
        target: a name or a `Target`.
        shapes: of its inputs, in order, where sizes are free; by default a free batch is 1.

    Raises:
        InputError: the target is unknown, there is no such file or it is no ONNX model, a file with its weights is missing, or
            sizes are free that are no batch.
        ArtifactError: ONNX Runtime refuses the model.
    """
    chosen = find(target)
    if chosen.runtime.name != "onnxruntime":
        raise InputError(
            f"{chosen.name} runs no ONNX files; audit for one of: arm, x86, x86-avx2, hexagon, nvidia, ..."
        )
    found = _auditor().audit_file(Path(model).expanduser(), chosen, shapes)
    return found


@dataclass(frozen=True, kw_only=True)
class FileAuditor(Backend):
    """A backend that reads ONNX files, whoever made them.

    Attributes:
        audit_file: of a path, for a target, with these shapes of inputs; see `audit`.
        fix: of an audited file, into a path, with calibration data and an example, measured or not; see `FileAudit.fix`.
    """

    audit_file: Callable[[Path, Target, Sequence[Sequence[int]] | None], FileAudit]
    fix: Callable[[FileAudit, Path, Any, Any, bool], Fixed]


def _auditor() -> FileAuditor:
    """ONNX Runtime reads ONNX files of every target."""
    found = backend("onnxruntime")
    assert isinstance(found, FileAuditor)
    return found
