"""What quantization-aware training wins back of ResNet-20, beside Brevitas.

    python benchmarks/qat.py --rows rows.jsonl [--formats W2A2 W4A4] [--ways ours] [--minutes 10] [--seeds 0 1 2]

The ladder's formats (few bits in between, 8 for the first and the last layer). `ours` begins with the codes of `gptq`; `brevitas`
with the float weights, its scales learned (`Int8WeightPerChannelFloat`, `Uint8ActPerTensorFloat` of as many bits). Both: batch
norms alive; 9,000 training images of CIFAR-10, flipped and shifted; AdamW, cosine; labels and the answers of ResNet-56
(temperature 4). As many epochs as have steps that fit in the CPU minutes of one thread, measured on six of them at the beginning;
evaluations are not counted. `test` is of the best epoch by mixtures of 1,000 held-out images (`cifar_training.Judge`), `last` of
the last one; 10,000 test images.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import common
import qat_brevitas
import torch
from cifar_training import TEMPERATURE, Augmented, Cifar, Judge, affordable
from ladder import Row, apply
from training_rows import record, summary

import graphopt
from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.training import QuantizationAware, Response

FORMATS = {"W4A4": (4, 4), "W2A4": (2, 4), "W2A2": (2, 2)}
RATES = {"W4A4": 1e-4, "W2A4": 5e-4, "W2A2": 1e-3}
STEPS = 6  # that are timed, to know how many epochs fit


def ours(cifar: Cifar, formats: str, minutes: float, seed: int) -> dict[str, Any]:
    start = quantized(cifar, formats)

    def train(graph: Graph, batches: Augmented, epochs: int, judge: Judge | None) -> None:
        graphopt.train(
            graph, batches, compress=[QuantizationAware("lsq"), Response(cifar.teacher, temperature=TEMPERATURE)],
            epochs=epochs, evaluate=judge, rate=RATES[formats], seed=seed,
        )  # fmt: skip

    few = cifar.train.first(STEPS)
    train(start.clone(), few, 1, None)
    few.seconds = few.seconds[-STEPS:]  # the ones before were read for the first statistics of batch norms
    batches, epochs = cifar.train, affordable(minutes, few)
    judge = Judge(cifar, epochs)
    train(start, batches, epochs, judge)
    return {**judge.row(start), "CPU min": batches.minutes}


def quantized(cifar: Cifar, formats: str) -> Graph:
    """ResNet-20 with codes chosen on data."""
    row = Row(*FORMATS[formats], ends=True)
    graph = apply(Graph.capture(cifar.zoo.cifar_resnet(20), cifar.calibration[:2]), prepare(row.target))
    data = Calibration(cifar.calibration, graph)
    return apply(graph, [Quantize(row.target, data, formats=row.formats(graph)), LearnRounding(data, method="gptq")])


def brevitas(cifar: Cifar, formats: str, minutes: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = qat_brevitas.network(cifar, *FORMATS[formats])
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    few = cifar.train.first(STEPS)
    qat_brevitas.loop(model, cifar, few, 1, RATES[formats], None)
    model.load_state_dict(kept)
    batches, epochs = cifar.train, affordable(minutes, few)
    judge = Judge(cifar, epochs)
    qat_brevitas.loop(model, cifar, batches, epochs, RATES[formats], judge)
    return {**judge.row(model.eval()), "CPU min": batches.minutes}


WAYS = {"ours": ours, "brevitas": brevitas}


def main() -> None:
    options = common.arguments(
        __doc__, rows="qat.jsonl", formats=list(FORMATS), ways=list(WAYS), minutes=10.0, seeds=[0, 1, 2]
    )
    torch.set_num_threads(1)
    cifar, path = Cifar(), Path(options.rows)
    for seed, formats, way in itertools.product(options.seeds, options.formats, options.ways):
        key = {"formats": formats, "way": way, "minutes": options.minutes, "seed": seed}
        record(path, key, partial(WAYS[way], cifar, formats, options.minutes, seed))
    common.finish({"resnet20": summary(path, ("formats", "way", "minutes"))}, options.json)


if __name__ == "__main__":
    main()
