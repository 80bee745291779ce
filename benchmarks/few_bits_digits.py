"""Every method for signs on spoken digits: a depthwise-separable network, its pointwise layers in one or two bits.

The network is trained in float once. Depthwise layers, the first and the last layer have 8 bits: a depthwise kernel is nine
numbers, for which signs save nothing. `test` is of the best epoch by held-out takes, `last` of the last one.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

from ladder import apply
from qat_digits import EPOCHS, start
from training_rows import record

import graphopt
from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.formats import Binary, Ternary
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.binary import Binarize
from graphopt.passes.quantization import Quantize
from graphopt.targets import find
from graphopt.training import QuantizationAware

RATE = 5e-3
TERNARY = ("twn", "ttq")
METHODS = ["binaryconnect", "binaryconnect_stochastic", "binarynet", "xnor", "tang", "bireal", "irnet", "lsq", *TERNARY]


def with_signs(digits: Any, float_graph: Graph, method: str, values: str) -> Graph:
    target = find("tvm-x86")
    graph = apply(float_graph.clone(), prepare(target))
    data = Calibration(digits.train[0][:256], graph)
    apply(graph, [Quantize(target, data)])
    deep = tuple(graph.site(n) for n in graph.calls() if (layer := Layer.of(n)) and layer.groups > 1)
    weights = Ternary(True, two_scales=method == "ttq") if method in TERNARY else Binary(True)
    activations = Binary() if values == "A1" else None
    return apply(graph, [Binarize(weights, activations=activations, calibration=data, leave=deep)])


def run(digits: Any, float_graph: Graph, method: str, values: str, seed: int) -> dict[str, Any]:
    graph = with_signs(digits, float_graph, method, values)
    tested: list[float] = []

    def held_out(model: Any) -> float:
        tested.append(digits.accuracy(model, digits.test))
        return float(digits.accuracy(model, digits.held_out))

    began = time.process_time()
    report = graphopt.train(
        graph, digits.train, compress=[QuantizationAware(method)], epochs=EPOCHS, batch_size=32, seed=seed, rate=RATE,
        evaluate=held_out,
    )  # fmt: skip
    minutes = (time.process_time() - began) / 60
    return {"before": tested[0], "last": tested[-1], "test": tested[report.kept], "CPU min": minutes}


def run_all(path: Path, methods: list[str], seeds: list[int]) -> None:
    digits, graph = start(path.with_suffix(".start.pt"))
    record(path, {"bits": "float", "way": "", "seed": 0}, lambda: {"test": digits.accuracy(graph, digits.test)})
    for seed, values, method in itertools.product(seeds, ("A8", "A1"), methods):
        if values == "A1" and method in TERNARY:
            continue
        bits = ("W2" if method in TERNARY else "W1") + values
        record(path, {"bits": bits, "way": method, "seed": seed}, partial(run, digits, graph, method, values, seed))
