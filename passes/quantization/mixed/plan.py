"""What `MixedPrecision` is going to do: the bits of every layer, what they cost and what they do to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.ir import cost as measure
from graphopt.passes.quantization.mixed.cost import Numbers
from graphopt.passes.quantization.mixed.space import Bits, Space, stored
from graphopt.passes.quantization.placement import LayerFormat
from graphopt.utils.pass_text import pass_text
from graphopt.utils.quantities import count
from graphopt.utils.tables import Column, Table, numbers, plain

WIDTH = 140  # of the plan as text


@dataclass(frozen=True)
class Row:
    """One layer. `activations`: bits of its output, where they were to be chosen. `sensitivity`: of its chosen weights alone."""

    name: str
    weights: Bits
    activations: Bits
    parameters: int
    macs: int
    sensitivity: float | None


@dataclass(frozen=True)
class MixedPlan:
    """The formats chosen, and why; prints as a table.

    Attributes:
        formats: layer name -> format, for `Quantize(formats=)` and `graphopt.optimize(formats=)`.
        chosen: which candidate was taken: `ilp`, `agent`, or the name of a uniform allocation.
        divergence: of every candidate, measured on samples that no bits were chosen by.
        distance: in which way: `kl` or `sqnr` (see `sensitivity.py`).
        samples: their number.
        cost, budget, unit: of what was chosen.
        notes: what else there is to say.
    """

    rows: Sequence[Row]
    formats: Mapping[str, LayerFormat | None]
    chosen: str
    divergence: Mapping[str, float]
    distance: str
    samples: int
    cost: float
    budget: float
    unit: str
    notes: Sequence[str] = ()

    @property
    def met(self) -> bool:
        """Whether the budget is kept."""
        return self.cost <= self.budget * (1 + 1e-9)

    @property
    def text(self) -> str:
        """The pass that does this again without choosing anew: to edit, and to give to `passes=` or `--passes`."""
        formats = {name: None if format is None else _plain(format) for name, format in self.formats.items()}
        return pass_text("Quantize", {"formats": formats})

    def summary(self) -> str:
        """The cost and the comparison, in a line."""
        known = ", ".join(f"{name} {value:.3g}" for name, value in self.divergence.items())
        of = f"{_number(self.cost)} of {_number(self.budget)} {self.unit}"
        met = "" if self.met else " (less was asked for than there is)"
        word = "KL divergence" if self.distance == "kl" else "relative error"
        return f"{of}{met}; {word} on {self.samples} samples: {known}; taken: {self.chosen}"

    def __str__(self) -> str:
        return "\n".join([plain([self._table()], WIDTH), self.summary(), *self.notes])

    def _table(self) -> Table:
        chosen = any(row.activations is not None for row in self.rows)
        names = ("weights", *(["activations"] if chosen else []), "parameters", "MACs", "sensitivity")
        shown = []
        for row in self.rows:
            cells = [row.name, _bits(row.weights, row.parameters)]
            cells += ["" if row.activations is None else str(row.activations)] if chosen else []
            work = [count(row.parameters), count(row.macs)] if row.parameters else ["", ""]
            shown.append([*cells, *work, "" if row.sensitivity is None else f"{row.sensitivity:.2g}"])
        return Table([Column("layer"), *numbers(*names)], shown)


def _plain(format: LayerFormat) -> dict[str, str]:
    parts = {"weights": format.weights, "activations": format.activations}
    return {name: str(part) for name, part in parts.items() if part is not None}


def rows(space: Space, assignment: Sequence[int], sensitivities: Sequence[Numbers]) -> list[Row]:
    """One for each layer, and for each other operator whose output's bits were to be chosen; in execution order."""
    work = measure.layer_macs(space.graph)
    found: dict[str, Row] = {}
    for number, (decision, bits) in enumerate(zip(space.decisions, space.bits(assignment), strict=True)):
        for site in decision.sites:
            row = found.get(site, Row(site, None, None, 0, 0, None))
            if decision.kind == "weights":
                macs = sum(work[node] for node in decision.nodes)
                cost = float(sensitivities[number][assignment[number]]) if len(decision.choices) > 1 else None
                row = Row(site, bits, row.activations, stored(decision), macs, cost)
            else:
                row = Row(site, row.weights, bits, row.parameters, row.macs, row.sensitivity)
            found[site] = row
    return list(found.values())


def _bits(bits: Bits, parameters: int) -> str:
    if not parameters:
        return ""
    return "float" if bits is None else str(bits)


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 else count(round(value))
