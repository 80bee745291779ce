"""Every method of quantization-aware training on spoken digits.

    python benchmarks/qat_digits.py --rows rows.jsonl [--formats W8A8 W4A4 W2A4] [--methods lsq dsq] [--seeds 0 1 2]

A depthwise-separable network trained from scratch in float, then quantized with the codes of `gptq` (every layer in few bits)
and trained by each method, the same epochs and rate, from the same start. `test` is of the best epoch by held-out takes, `last`
of the last one; takes 0 to 4 are the test set.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from distillation import RATE, Digits, Separable
from ladder import apply
from training_rows import record, summary

import graphopt
from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.formats.uniform import with_bits
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.targets import find
from graphopt.training import QuantizationAware
from graphopt.training.quantization import METHODS

FORMATS = {"W8A8": (8, 8), "W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4)}
RATES = {"W8A8": 1e-3, "W4A4": 1e-2, "W3A3": 1e-2, "W2A4": 1e-2}
WIDTHS = (16, 32, 48)
EPOCHS = 12


def start(kept: Path) -> tuple[Digits, Graph]:
    """The data, and the network in float, trained once."""
    digits = Digits()
    torch.manual_seed(0)
    graph = Graph.capture(Separable(WIDTHS).eval(), digits.train[0][:2])
    if kept.exists():
        graph.load_state_dict(torch.load(kept, weights_only=True))
    else:
        graphopt.train(
            graph, digits.train, epochs=15, batch_size=32, rate=RATE,
            evaluate=lambda model: digits.accuracy(model, digits.held_out),
        )  # fmt: skip
        torch.save(graph.state_dict(), kept)
    return digits, graph.eval()


def quantized(digits: Digits, float_graph: Graph, formats: str) -> Graph:
    weights, activations = FORMATS[formats]
    target = find("x86")
    target = target.replace(
        weights=replace(target.formats.weights, bits=weights),
        activations=with_bits(target.formats.activations, activations),
    )
    graph = apply(float_graph.clone(), prepare(target))
    data = Calibration(digits.train[0][:256], graph)
    return apply(graph, [Quantize(target, data), LearnRounding(data, method="gptq")])


def run(digits: Digits, float_graph: Graph, formats: str, method: str, seed: int) -> dict[str, Any]:
    graph = quantized(digits, float_graph, formats)
    tested: list[float] = []

    def held_out(model: Any) -> float:
        tested.append(digits.accuracy(model, digits.test))
        return digits.accuracy(model, digits.held_out)

    began = time.process_time()
    report = graphopt.train(
        graph, digits.train, compress=[QuantizationAware(method)], epochs=EPOCHS, batch_size=32, seed=seed,
        rate=RATES[formats], evaluate=held_out,
    )  # fmt: skip
    minutes = (time.process_time() - began) / 60
    return {"before": tested[0], "last": tested[-1], "test": tested[report.kept], "CPU min": minutes}


def main() -> None:
    options = common.arguments(
        __doc__, rows="digits.jsonl", formats=list(FORMATS), methods=list(METHODS), seeds=[0, 1, 2]
    )
    torch.set_num_threads(1)
    path = Path(options.rows)
    digits, graph = start(path.with_suffix(".start.pt"))
    record(path, {"formats": "float", "way": "", "seed": 0}, lambda: {"test": digits.accuracy(graph, digits.test)})
    for seed, formats, method in itertools.product(options.seeds, options.formats, options.methods):
        key = {"formats": formats, "way": method, "seed": seed}
        record(path, key, partial(run, digits, graph, formats, method, seed))
    common.finish({"digits": summary(path, ("formats", "way"))}, options.json)


if __name__ == "__main__":
    main()
