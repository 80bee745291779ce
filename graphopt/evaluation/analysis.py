"""What `analyze` found: tables, plots and plain data of layers and of quantized tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from graphopt.artifacts.report import Report, portable
from graphopt.evaluation.tensor_statistics import TensorStatistics
from graphopt.utils import terminal
from graphopt.utils.checks import check_count
from graphopt.utils.printed import Printed
from graphopt.utils.quantities import decibel
from graphopt.utils.tables import Block, Column, Line, Table, numbers

TENSORS = 10  # shown unless asked otherwise


class Fidelity(NamedTuple):
    """How close to float: signal-to-quantization-noise ratio in decibels (infinite where equal), cosine similarity."""

    sqnr_db: float
    cosine: float

    def __str__(self) -> str:
        return "equal" if self.sqnr_db == math.inf else f"{decibel(self.sqnr_db)} {self.cosine:.4f}"


class Effect(NamedTuple):
    """What quantizing does at the layer's own result, and at the network's output (the worst one where there are several)."""

    here: Fidelity
    output: Fidelity


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, or another operator or input whose result is quantized.

    Attributes:
        name: the module's path.
        operator: `conv`, `linear`, `add`, `input`, ...
        weight_bits, activation_bits: of its codes; None where weights or result are float.
        alone: only this layer quantized.
        cumulative: everything up to it in execution order quantized.
        reason: why a layer is float, where the quantizer left word.
    """

    name: str
    operator: str
    weight_bits: int | None
    activation_bits: int | None
    alone: Effect
    cumulative: Effect
    reason: str = ""

    @property
    def is_float(self) -> bool:
        return self.weight_bits is None and self.activation_bits is None


@dataclass(frozen=True)
class Analysis(Printed):
    """What `analyze` found.

    Attributes:
        layers: in execution order.
        tensors: every quantized activation and weight, in execution order.
        samples: on which layers and tensors were compared.
        output_samples: on which the network's output was compared.
        notes: remarks, for instance that the inputs were made up.
    """

    width: ClassVar[int] = 130
    layers: list[LayerSensitivity]
    tensors: list[TensorStatistics]
    samples: int
    output_samples: int
    notes: list[str] = field(default_factory=list)

    def ranked(self) -> list[LayerSensitivity]:
        """Layers by what quantizing each alone does to the network's output, worst first; float layers last."""
        return sorted(self.layers, key=lambda layer: (layer.is_float, ascending(layer.alone.output.sqnr_db)))

    def worst_tensors(self) -> list[TensorStatistics]:
        """Quantized activations and weights by SQNR, worst first."""
        return sorted(self.tensors, key=lambda tensor: ascending(tensor.sqnr_db))

    def first_bad(self, sqnr_db: float) -> LayerSensitivity | None:
        """The first layer in execution order whose cumulative SQNR, at its own result, is below this; None where all hold."""
        return next((layer for layer in self.layers if not layer.cumulative.here.sqnr_db >= sqnr_db), None)

    def annotate(self, report: Report) -> None:
        """Write into a report what quantizing each layer alone does to the output, and the distribution of every tensor."""
        damage = {layer.name: layer.alone.output.sqnr_db for layer in self.layers if not layer.is_float}
        report.network = [
            replace(call, sqnr_db=damage.get(call.name, damage.get(f"{call.name} output"))) for call in report.network
        ]
        report.distributions = [tensor.distribution() for tensor in self.worst_tensors()]

    # ---- Showing and keeping ----------------------------------------------------------------------------------------

    def blocks(self) -> list[Block]:
        return self._blocks(None, TENSORS)

    def print(self, layers: int | None = None, tensors: int | None = TENSORS) -> None:
        """Show so many layers and tensors, worst first (None: all). In colour on a terminal, as plain text in a pipe."""
        for name, count in (("layers", layers), ("tensors", tensors)):
            if count is not None:
                check_count(name, count, least=0)
        terminal.show(self._blocks(layers, tensors), self.width)

    def plot(self, folder: str | Path, worst: int | None = None, format: str = "png") -> list[Path]:
        """Draw the layers by what quantizing them costs, and the histogram of every quantized tensor with its range.

        Args:
            folder: made where it does not exist; files of the same names are replaced, each whole or not at all.
            worst: draw only so many histograms, by SQNR.
            format: `png` or `svg`.

        Returns:
            The pictures. Beside them is `index.html`, which shows all.

        Raises:
            InputError: matplotlib is not installed, the format is unknown, or the folder cannot be written.
        """
        from graphopt.evaluation import plots

        return plots.draw(self, folder, worst, format)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without histograms; infinities and NaN as strings."""
        plain: dict[str, Any] = portable(
            {
                "samples": self.samples,
                "output_samples": self.output_samples,
                "notes": self.notes,
                "layers": [_layer_dict(layer) for layer in self.layers],
                "tensors": [tensor.to_dict() for tensor in self.tensors],
            }
        )
        return plain

    def _blocks(self, layers: int | None, tensors: int | None) -> list[Block]:
        quantized = [layer for layer in self.ranked() if not layer.is_float]
        floating = [layer for layer in self.layers if layer.is_float]
        reasons = [f"{layer.name} stays float: {layer.reason}" for layer in floating if layer.reason]
        columns = numbers("bits", "alone: here", "at the output", "cumulative: here", "at the output")
        parts: list[Block] = [
            Line(
                f"{len(quantized)} quantized layers, worst first: SQNR and cosine against float on {self.samples} samples, "
                f"at the output on {self.output_samples}",
                "title",
            ),
            Table([Column("layer"), *columns], [_row(layer) for layer in [*quantized[:layers], *floating]]),
        ]
        if tensors is None or tensors > 0:
            columns = numbers("bits", "range", "seen", "clipped", "codes used", "SQNR")
            grids = Table(
                [Column("activation or weight"), *columns], [t.cells() for t in self.worst_tensors()[:tensors]]
            )
            parts += [Line("activations and weights, worst first", "title"), grids]
        return parts + [Line(f"note: {note}") for note in [*self.notes, *reasons]]


def ascending(sqnr_db: float) -> float:
    return -math.inf if math.isnan(sqnr_db) else sqnr_db


def _row(layer: LayerSensitivity) -> list[str]:
    effects = [layer.alone.here, layer.alone.output, layer.cumulative.here, layer.cumulative.output]
    return [layer.name, _bits(layer), *map(str, effects)]


def _bits(layer: LayerSensitivity) -> str:
    """Of weights and result, as "4 / 8"; a dash where there are no weights, as in sums."""
    if layer.is_float:
        return "float"
    weights = "-" if layer.weight_bits is None else str(layer.weight_bits)
    return f"{weights} / {'float' if layer.activation_bits is None else layer.activation_bits}"


def _layer_dict(layer: LayerSensitivity) -> Mapping[str, Any]:
    def effect(found: Effect) -> dict[str, Any]:
        return {"here": found.here._asdict(), "output": found.output._asdict()}

    return {
        "name": layer.name,
        "operator": layer.operator,
        "weight_bits": layer.weight_bits,
        "activation_bits": layer.activation_bits,
        "alone": effect(layer.alone),
        "cumulative": effect(layer.cumulative),
        "reason": layer.reason,
    }
