"""One training of an elastic ResNet-20 against five trainings of pruned ones, at the same total CPU time.

    python benchmarks/supernet.py --rows rows.jsonl [--minutes 10] [--seeds 0]

    supernet   `Elastic` widths inside blocks and one block of each stage, `Sandwich`, ResNet-56 as teacher of the largest; then
               for each budget the best network by evolution over `EVALUATIONS` networks, of which the best `FITTED` are fitted to
               the largest one by least squares and judged again; without any further training
    alone      `Prune` to the same multiply-accumulates, then a fifth of the time with ResNet-56 as teacher

Both: 9,000 training images of CIFAR-10, flipped and shifted; AdamW, cosine; as many epochs as have steps that fit in the CPU
minutes of one thread. Networks are chosen, and states kept, by mixtures of held-out images (`cifar_training.Judge`); `test` is of
all 10,000 test images. Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from cifar_training import TEMPERATURE, Augmented, Cifar, Judge, accuracy, affordable, answers
from ladder import apply
from training_rows import record, summary

import graphopt
from graphopt.data import Calibration
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.elastic import Elastic
from graphopt.passes.pruning import Prune
from graphopt.supernets import search
from graphopt.training import Response
from graphopt.training.choices import Sandwich

BUDGETS = (0.8, 0.65, 0.55, 0.45, 0.37)
ELASTIC = Elastic(widths=(0.75, 0.5), depths=("layer?.2",), round_to=4, streams=False)
EVALUATIONS, FITTED, RATE, STEPS = 100, 3, 1e-3, 4
SEEN = 500  # held-out images that a search judges by


def trained(cifar: Cifar, graph: Graph, compress: list[Any], minutes: float, seed: int, judged: bool) -> float:
    """Train a graph for so many minutes of steps; the minutes that they took."""

    def train(graph: Graph, batches: Augmented, epochs: int, judge: Judge | None) -> None:
        graphopt.train(
            graph, batches, compress=[*compress, Response(cifar.teacher, temperature=TEMPERATURE)], epochs=epochs,
            evaluate=judge, rate=RATE, seed=seed,
        )  # fmt: skip

    few = cifar.train.first(STEPS)
    train(graph.clone(), few, 1, None)
    few.seconds = few.seconds[-STEPS:]  # the ones before were read to begin with
    batches, epochs = cifar.train, affordable(minutes, few)
    train(graph, batches, epochs, Judge(cifar, epochs) if judged else None)
    return batches.minutes


class Closeness:
    """How close answers to mixtures of held-out images are to the teacher's."""

    def __init__(self, cifar: Cifar) -> None:
        x = cifar.held_out[0][:SEEN]
        self.mixed = (x + x.flip(0)) / 2
        self.wanted = answers(cifar.teacher, self.mixed).log_softmax(1)

    def __call__(self, model: Any) -> float:
        found = answers(model, self.mixed).log_softmax(1)
        return -float(F.kl_div(found, self.wanted, log_target=True, reduction="batchmean"))


def original(cifar: Cifar) -> Graph:
    return Graph.capture(cifar.zoo.cifar_resnet(20), cifar.calibration[:2])


def supernet(cifar: Cifar, minutes: float, seed: int, path: Path) -> dict[str, Any]:
    graph = apply(original(cifar), [ELASTIC])
    spent = trained(cifar, graph, [Sandwich(2, temperature=TEMPERATURE)], minutes, seed, judged=False)
    graph.eval()
    graph.save(path.with_suffix(f".{seed}.pt2"))
    return {"CPU min": spent, "test": accuracy(graph, *cifar.test), "share": 1.0}


def of_supernet(cifar: Cifar, budget: float, seed: int, path: Path) -> dict[str, Any]:
    graph = Graph.load(path.with_suffix(f".{seed}.pt2"))
    began = time.process_time()
    found = search(
        graph, {"macs": budget * cost.macs(original(cifar))}, evaluate=Closeness(cifar), evaluations=EVALUATIONS, seed=seed,
        data=[[batch] for batch in cifar.calibration.split(256)], refit=FITTED,
    )  # fmt: skip
    minutes = (time.process_time() - began) / 60
    return {**figures(cifar, found.graph), "search min": minutes}


def alone(cifar: Cifar, budget: float, minutes: float, seed: int) -> dict[str, Any]:
    graph = original(cifar)
    apply(graph, [Prune(keep_ratio=budget, data=Calibration(cifar.calibration, graph))])
    spent = trained(cifar, graph, [], minutes / len(BUDGETS), seed, judged=True)
    return {**figures(cifar, graph.eval()), "CPU min": spent}


def figures(cifar: Cifar, graph: Graph) -> dict[str, Any]:
    return {"test": accuracy(graph, *cifar.test), "share": cost.macs(graph) / cost.macs(original(cifar))}


def main() -> None:
    options = common.arguments(__doc__, rows="supernet.jsonl", minutes=10.0, seeds=[0])
    torch.set_num_threads(1)
    cifar, path = Cifar(), Path(options.rows)
    for seed in options.seeds:
        whole = {"way": "supernet, whole", "budget": 1.0, "seed": seed}
        record(path, whole, partial(supernet, cifar, options.minutes, seed, path))
        for budget in BUDGETS:
            key = {"budget": budget, "seed": seed}
            record(path, {"way": "supernet", **key}, partial(of_supernet, cifar, budget, seed, path))
            record(path, {"way": "alone", **key}, partial(alone, cifar, budget, options.minutes, seed))
    shown = ("share", "CPU min", "search min", "test")
    common.finish({"ResNet-20": summary(path, ("way", "budget"), shown)}, options.json)


if __name__ == "__main__":
    main()
