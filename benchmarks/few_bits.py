"""Weights and values of one and two bits: what training wins back, and what kernels take.

    python benchmarks/few_bits.py --rows rows.jsonl [--parts kernels digits resnet20] [--ways "W1A8 irnet"] [--minutes 10]

`resnet20`: ResNet-20 with signs in every layer but the first and the last, 8 bits elsewhere; what training uses is that of
`qat.py`: 9,000 images, labels and the answers of ResNet-56, as many epochs as have steps that fit in the CPU minutes of a
thread, in bfloat16 where the processor multiplies it.
W1A1 has a shortcut around each convolution and clips in place of relus (`BlockShortcuts`): a third of the minutes trains that
network in float, before its layers get signs. W1A8, W2A8: weights have one bit, or two, values 8; this is less than the papers'
W1A32, whose values are float.

`digits`: every method on spoken digits, from the same float network, the same epochs and rate.

`kernels`: `few_bits_kernels.py`.

Each training is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import common
import few_bits_digits
import few_bits_kernels
import torch
from cifar_training import TEMPERATURE, Augmented, Cifar, Judge, affordable
from ladder import apply
from training_rows import record, summary

import graphopt
from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.formats import Binary, Ternary
from graphopt.ir.graph import Graph
from graphopt.passes.binary import Binarize, BlockShortcuts
from graphopt.passes.quantization import Quantize
from graphopt.targets import find
from graphopt.training import QuantizationAware, Response

STEPS = 6  # that are timed, to know how many epochs fit
IN_FLOAT = 1 / 3  # of the minutes, for the network of W1A1
RATES = {"W1A8": 1e-3, "W2A8": 1e-3, "W1A1": 2e-3}
WAYS = {  # bits, method
    "W1A8 irnet": ("W1A8", "irnet"),
    "W1A8 xnor": ("W1A8", "xnor"),
    "W2A8 twn": ("W2A8", "twn"),
    "W2A8 ttq": ("W2A8", "ttq"),
    "W1A1 irnet": ("W1A1", "irnet"),
    "W1A1 bireal": ("W1A1", "bireal"),
}


def resnet20(cifar: Cifar, way: str, minutes: float, seed: int) -> dict[str, Any]:
    bits, method = WAYS[way]
    torch.manual_seed(seed)
    graph = Graph.capture(cifar.zoo.cifar_resnet(20), cifar.calibration[:2])
    spent, share = 0.0, 1.0
    if bits == "W1A1":
        apply(graph, [BlockShortcuts("hardtanh")])
        spent = train(cifar, graph, None, minutes * IN_FLOAT, 2e-3, seed, judge=False)[1]
        share = 1 - IN_FLOAT
    graph = with_signs(cifar, graph, bits, method)
    judge, took = train(cifar, graph, method, minutes * share, RATES[bits], seed, judge=True)
    assert judge is not None
    return {**judge.row(graph), "CPU min": spent + took}


def with_signs(cifar: Cifar, graph: Graph, bits: str, method: str) -> Graph:
    target = find("tvm-x86")
    graph = apply(graph, prepare(target))
    data = Calibration(cifar.calibration, graph)
    if bits == "W1A1":
        signs = Binarize(activations=Binary(), calibration=data)
    else:
        signs = Binarize(Binary(True) if bits == "W1A8" else Ternary(True, two_scales=method == "ttq"))
    return apply(graph, [Quantize(target, data), signs])


def train(
    cifar: Cifar, graph: Graph, method: str | None, minutes: float, rate: float, seed: int, *, judge: bool
) -> tuple[Judge | None, float]:
    """As many epochs as fit; the judge, and the CPU minutes of the steps."""

    def some(graph: Graph, batches: Augmented, epochs: int, judge: Judge | None) -> None:
        learned = [] if method is None else [QuantizationAware(method)]
        graphopt.train(
            graph, batches, compress=[*learned, Response(cifar.teacher, temperature=TEMPERATURE)],
            epochs=epochs, evaluate=judge, rate=rate, seed=seed, precision="auto",
        )  # fmt: skip

    few = cifar.train.first(STEPS)
    some(graph.clone(), few, 1, None)
    few.seconds = few.seconds[-STEPS:]  # the ones before were read for the first statistics of batch norms
    batches, epochs = cifar.train, affordable(minutes, few)
    found = Judge(cifar, epochs) if judge else None
    some(graph, batches, epochs, found)
    return found, batches.minutes


def main() -> None:
    options = common.arguments(
        __doc__, rows="few_bits.jsonl", parts=["kernels", "digits", "resnet20"], ways=list(WAYS), minutes=10.0, seeds=[0],
        methods=few_bits_digits.METHODS, repeats=40,
    )  # fmt: skip
    torch.set_num_threads(1)
    path, tables = Path(options.rows), {}
    if "kernels" in options.parts:
        tables |= few_bits_kernels.tables(options.repeats)
    if "digits" in options.parts:
        digits = path.with_suffix(".digits.jsonl")
        few_bits_digits.run_all(digits, options.methods, options.seeds)
        tables["digits"] = summary(digits, ("bits", "way"))
    if "resnet20" in options.parts:
        cifar = Cifar()
        for seed, way in itertools.product(options.seeds, options.ways):
            key = {"way": way, "minutes": options.minutes, "seed": seed}
            record(path, key, partial(resnet20, cifar, way, options.minutes, seed))
        tables["resnet20"] = summary(path, ("way", "minutes"))
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
