"""What number formats cost in accuracy, and what their weights take in a file.

ResNet-20 on CIFAR-10, calibrated on 512 training images: weights and values in one format each, biases corrected, everything else
as in the target's recipe. Simulated graphs; agreement is the share of images with the same class as in float. The file is what
`graphopt.artifacts.packing.write` stores: codes and parameters of all weights (float32: 4 bytes each).

Targets: log 8 and block floating point 8 within 1 point of float, powers of two within 0.5, 16 bits within 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import common
import torch
from torch import Tensor

from graphopt.artifacts import packing
from graphopt.compiler.recipes import prepare
from graphopt.data.calibration import Calibration
from graphopt.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_WITHOUT_SUBNORMALS,
    BlockFloat,
    Codebook,
    Format,
    LogFormat,
    NumberFormat,
)
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passmanager.runner import run
from graphopt.targets import find

EIGHT, VALUES = Format(8, per_channel=True), Format(8, signed=False, symmetric=False)
RISTRETTO = Format(8, power_of_two=True)


@dataclass(frozen=True)
class Row:
    """Formats, and how many points of accuracy they may cost at most."""

    weights: NumberFormat
    values: NumberFormat
    wanted: float | None = None


ROWS = [
    Row(EIGHT, VALUES),
    Row(LogFormat(8), VALUES, 1.0),
    Row(LogFormat(8), LogFormat(8), 1.0),
    Row(LogFormat(4, per_channel=True), VALUES),
    Row(BlockFloat(8), BlockFloat(8), 1.0),
    Row(BlockFloat(4), BlockFloat(8)),
    Row(RISTRETTO, RISTRETTO, 0.5),
    Row(Format(16, per_channel=True), Format(16, signed=False, symmetric=False), 0.1),
    Row(LogFormat(16), LogFormat(16), 0.1),
    Row(FLOAT16, FLOAT16, 0.1),
    Row(FLOAT16_WITHOUT_SUBNORMALS, FLOAT16_WITHOUT_SUBNORMALS, 0.1),
    Row(BFLOAT16, BFLOAT16),
    Row(Codebook(4, per_channel=True), VALUES),
    Row(Codebook(4), VALUES),
    Row(Codebook(3), VALUES),
    Row(Codebook(8), Codebook(8)),
]


def measured(graph: Graph, row: Row, calibration: Tensor, x: Tensor, wanted: Tensor, y: Tensor) -> dict[str, Any]:
    """A row of the table."""
    graph = graph.clone()
    batches = Calibration(calibration, graph)
    run(
        [Quantize(find("x86"), batches, weights=row.weights, activations=row.activations), CorrectBias(batches)],
        graph,
        verify=False,
    )
    answers = torch.cat([graph(part) for part in x.split(250)])
    with common.workplace() as folder:
        path = folder / "weights.packed"
        packing.write(graph, path)
        size = path.stat().st_size
    classes = answers.argmax(1)
    lost = 100 * float((wanted.argmax(1) == y).double().mean() - (classes == y).double().mean())
    return {
        "weights": str(row.weights),
        "values": str(row.activations),
        "top-1 %": 100 * float((classes == y).double().mean()),
        "lost": round(lost, 2),
        "may lose": row.wanted,
        "agreement %": 100 * float((classes == wanted.argmax(1)).double().mean()),
        "output SQNR dB": round(cost.sqnr(wanted, answers), 1),
        "file, bytes": size,
    }


def main() -> None:
    options = common.arguments(__doc__, images=10_000)
    zoo = common.data()
    calibration = zoo.cifar10("train10k")[0][:512]
    x, y = (part[: options.images] for part in zoo.cifar10("test"))
    graph = Graph.capture(zoo.cifar_resnet(20), calibration[:2])
    run(prepare(find("x86")), graph)
    rows = []
    with torch.no_grad():
        wanted = torch.cat([graph(part) for part in x.split(250)])
        rows.append(
            {"weights": "float32", "values": "float32", "top-1 %": 100 * float((wanted.argmax(1) == y).double().mean())}
        )
        for row in ROWS:
            common.log(f"{row.weights} x {row.activations}")
            rows.append(measured(graph, row, calibration, x, wanted, y))
    common.finish({f"ResNet-20, {len(x)} test images": rows}, options.json)


if __name__ == "__main__":
    main()
