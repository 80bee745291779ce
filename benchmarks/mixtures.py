"""Experts that a router chooses, and kernels that are sums of experts: what they gain in accuracy, and what they cost in time.

    python benchmarks/mixtures.py --rows rows.jsonl [--parts digits time] [--seeds 0 1]

digits   a depthwise-separable network on spoken digits, trained for eight epochs. From there it is trained on for eight more as
         it is, with its pointwise layers as mixtures of 4 experts of which 1 is taken, or with kernels that are sums of 4;
         beside them a network of twice the width, for sixteen epochs. The epoch is chosen on held-out takes.
time     ResNet-20 with each block, or each kernel, as 4 experts with random routers: one image at a time, one thread, ONNX
         Runtime, in turn with the plain network in int8

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from distillation import BATCH, RATE, Digits, Separable
from torch import Tensor
from training_rows import read, record, summary

import graphopt
from graphopt import Graph
from graphopt.analysis.experts import experts_taken, mixtures
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.passes import AddExperts, CondConv, FoldBatchNorm, MixKernels
from graphopt.passmanager import run as run_passes
from graphopt.targets import host
from graphopt.training.experts import NoisyTopK

WIDTHS, WIDE = (8, 16, 24), (16, 32, 48)
FIRST, MORE = 8, 8  # epochs
LAYERS = ["stages.*.1.0"]
IMAGES = 40  # of which times are measured


# ---- Accuracy -------------------------------------------------------------------------------------------------------


def network(widths: tuple[int, ...], digits: Digits, seed: int) -> Graph:
    torch.manual_seed(seed)
    return Graph.capture(Separable(widths).eval(), digits.train[0][:2])


def trained(graph: Graph, digits: Digits, epochs: int, seed: int, rate: float = RATE, **options: Any) -> Graph:
    def held_out(model: Callable[[Tensor], Tensor]) -> float:
        return digits.accuracy(model, digits.held_out)

    graphopt.train(
        graph, digits.train, evaluate=held_out, epochs=epochs, batch_size=BATCH, rate=rate, seed=seed, **options
    )
    return graph.eval()


def started(digits: Digits, seed: int, kept: Path) -> Graph:
    """The plain network after the first epochs."""
    place = kept.with_suffix(f".start{seed}.pt2")
    if not place.exists():
        trained(network(WIDTHS, digits, seed), digits, FIRST, seed).save(place)
    return Graph.load(place)


def one(digits: Digits, way: str, seed: int, kept: Path) -> dict[str, Any]:
    began, further = time.process_time(), {}
    if way == "twice the width":
        graph = trained(network(WIDE, digits, seed), digits, FIRST + MORE, seed)
    else:
        graph = started(digits, seed, kept)
        began = time.process_time()
        if way == "4 experts, 1 taken":
            AddExperts(what="layers", parts=LAYERS)(graph)
            trained(graph, digits, MORE, seed, compress=[NoisyTopK()])
            shares = experts_taken(graph, [[x] for x in digits.test[0].split(100)]).values()
            further = {"used": statistics.fmean(sum(share > 0.02 for share in each) for each in shares)}
        elif way == "kernels of 4":
            CondConv(layers=LAYERS)(graph)
            trained(graph, digits, MORE, seed)
        elif way == "trained on":
            trained(graph, digits, MORE, seed)
    work = macs_of(summed(graph, digits.test[0]) if way == "kernels of 4" else graph)
    return {
        "test": digits.accuracy(graph, digits.test), "CPU min": (time.process_time() - began) / 60,
        "thousand MACs": work / 1e3, "thousand parameters": cost.parameters(graph) / 1e3, **further,
    }  # fmt: skip


def macs_of(graph: Graph) -> float:
    """Of a sample, without the experts that it does not take. Those of one mixture are alike."""
    work, known = cost.layer_macs(graph), mixtures(graph)
    copies = sum(macs for node, macs in work.items() if ".expert_1" in graph.site(node))
    return cost.macs(graph) - copies * (known[0].experts - known[0].take if known else 0)


def summed(graph: Graph, x: Tensor) -> Graph:
    """The same for one sample, with kernels that are summed in front of convolutions."""
    single = Graph.capture(graph.module.eval(), x[:1], dynamic_batch=False)
    MixKernels()(single)
    return single


WAYS = ("as it was", "trained on", "4 experts, 1 taken", "kernels of 4", "twice the width")


def digits(path: Path, seeds: list[int]) -> None:
    data = Digits()
    for seed, way in itertools.product(seeds, WAYS):
        record(path, {"network": way, "seed": seed}, partial(one, data, way, seed, path))


# ---- Time -----------------------------------------------------------------------------------------------------------


def opinionated(graph: Graph) -> Graph:
    """Routers and experts that differ, so that nothing is merged and all are chosen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "scores.weight" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif ".expert_" in name:
                parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return graph


def resnet(how: str) -> Graph:
    zoo = common.data()
    graph = Graph.capture(zoo.cifar_resnet(20), zoo.cifar10("test")[0][:1], dynamic_batch=False)
    run_passes([FoldBatchNorm()], graph)
    if "taken" in how:
        AddExperts(take=2 if "2 taken" in how else 1)(graph)
    if "kernels" in how:
        CondConv(layers=["layer*"])(graph)
    opinionated(graph)
    if "summed" in how:
        MixKernels()(graph)
    return graph


def artifact(how: str, x: Tensor) -> Any:
    graph = resnet(how)
    if "float" in how:
        return lower(graph, host())
    return graphopt.optimize(
        graph, x[:1], target=host(), calibration=x[:128], measure=False, dynamic_batch=False
    ).artifact


TIMED = (
    "4 experts, 1 taken, int8", "4 experts, 2 taken, int8", "kernels of 4, int8", "plain, float", "4 experts, 1 taken, float",
    "kernels of 4, summed, float",
)  # fmt: skip


def timed(path: Path, _: list[int]) -> None:
    x = common.data().cifar10("train10k")[0]
    plain = artifact("plain, int8", x)

    def run(how: str) -> dict[str, Any]:
        found, rows = artifact(how, x), []
        for image in x[128 : 128 + IMAGES].split(1):
            taken = cost.timings({"it": lambda: found(image), "plain": lambda: plain(image)}, repeats=20)  # noqa: B023
            rows.append([min(taken.ms[name]) for name in ("it", "plain")])
        ours, theirs = (statistics.fmean(column) for column in zip(*rows, strict=True))
        return {"ms": ours, "plain ms": theirs, "time": ours / theirs, "million MACs": macs_of(resnet(how)) / 1e6}

    for how in TIMED:
        record(times_of(path), {"network": how}, partial(run, how))


# ---- Tables ---------------------------------------------------------------------------------------------------------


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    figures = ("test", "thousand MACs", "thousand parameters", "used", "CPU min")
    found = {"Spoken digits": summary(path, ("network",), figures)}
    found["ResNet-20, one image"] = [
        {"network": row["network"], "million MACs": row["million MACs"], "share of time": row["time"], "ms": row["ms"],
         "plain int8 ms": row["plain ms"]}
        for row in read(times_of(path))
    ]  # fmt: skip
    return {name: table for name, table in found.items() if table}


def times_of(path: Path) -> Path:
    return path.with_suffix(".time.jsonl")


PARTS = {"digits": digits, "time": timed}


def main() -> None:
    options = common.arguments(__doc__, rows="mixtures.jsonl", parts=list(PARTS), seeds=[0, 1])
    torch.set_num_threads(1)
    path = Path(options.rows)
    for part in options.parts:
        PARTS[part](path, options.seeds)
    common.finish(tables(path), options.json)


if __name__ == "__main__":
    main()
