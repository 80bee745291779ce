"""Predicted against measured time of random sub-networks: how far sums over parts can be believed, and what correcting them adds.

    python benchmarks/predicted_latency.py [--networks ResNet-20 MobileNetV1 torchvision/mobilenet_v2]
                                           [--runtimes onnxruntime tvm] [--count 50] [--seen 32]

Widths of all groups are drawn at random around a level that is drawn for each network; ranks and residual blocks are
changed one time in five. Each network is lowered in int8 with made-up weights and timed in turn with the whole one.
Predicted: the times of its parts, measured by themselves at some widths (`PartTimes`), so scaled that the whole one agrees;
`corrected`: by the times of other networks (`Correction`), none of which is among those that are predicted. R^2 is that of
the prediction itself (not of a line fitted to it); errors are relative.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any

import common
import numpy as np
import torch
import zoo

from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.clock import Clock
from graphopt.compiler.budget.correction import Correction, drawn
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.spending import Spending
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.made_up import lowered
from graphopt.compiler.part_times import PartTimes
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.searching import Assignment, Problem
from graphopt.targets import host

NETWORKS = ["ResNet-20", "MobileNetV1", "torchvision/mobilenet_v2"]
Rows = list[dict[str, Any]]


def spending(name: str, target: Any) -> Spending:
    torch.manual_seed(0)
    if name.startswith("torchvision"):
        model, (example,), _ = zoo.make(name)
        common.randomise(model)
    elif name == "MobileNetV1":
        model, example = common.data().mobilenet_v1(), torch.randn(1, 3, 224, 224)
    else:
        model, example = common.data().cifar_resnet(int(name.rpartition("-")[2])), torch.randn(1, 3, 32, 32)
    graph = Graph.capture(model.eval(), example)
    gather_shuffles(graph)
    trace, multiple = Trace(graph), target.kernels.channel_multiple
    prune = Prune(keep_ratio=0.5, round_to=multiple)
    data = [[torch.randn(4, *example.shape[1:])]]
    return Spending.made(graph, trace, Widths.of(prune, graph, trace), Ranks.of(graph, data, multiple), data, prune)


def drafts(chosen: Spending, correction: Correction, seed: int) -> Iterator[Assignment]:
    first = correction.raw((0,) * len(chosen.choices))
    for draft in drawn(chosen.choices, seed):
        yield draft if correction.raw(draft) < 10 * first else chosen.without_ranks(draft)


def rows(name: str, runtime: str, count: int, seen: int) -> Rows:
    target = host(runtime)
    chosen = spending(name, target)
    correction = Correction(chosen.choices, chosen.costs.milliseconds(PartTimes(target)))
    whole = chosen.mock((0,) * len(chosen.choices))
    clock = Clock(lowered(whole, target), whole.example)
    for draft in islice(drafts(chosen, correction, 0), seen):
        correction.see(draft, clock(lowered(chosen.mock(draft), target)))
        common.log(f"{name}, {runtime}, {len(correction.seen)}: {correction.seen[draft]:.4f} ms")
    networks = list(islice(drafts(chosen, correction, 1), 2, count + 2))
    measured = np.array([clock(lowered(chosen.mock(draft), target)) for draft in networks])
    first = next(iter(correction.seen))
    alone = np.array([correction.raw(draft) for draft in networks]) * correction.seen[first] / correction.raw(first)
    problem = Problem(chosen.choices, {"ms": correction.terms()}, {})
    corrected = np.array([problem.cost("ms", draft) for draft in networks])
    told = functools.partial(row, name, runtime, measured, shares=measured / correction.seen[first])
    return [told("none", alone), told(f"{len(correction.seen)} networks", corrected)]


def row(name: str, runtime: str, measured: Any, correction: str, predicted: Any, shares: Any) -> dict[str, Any]:
    errors = np.abs(predicted / measured - 1)
    return {
        "network": name,
        "runtime": runtime,
        "networks": len(measured),
        "shares": f"{shares.min():.2f} to {shares.max():.2f}",
        "correction": correction,
        "R^2": 1 - float(((predicted - measured) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
        "correlation": float(np.corrcoef(predicted, measured)[0, 1]),
        "median error %": 100 * float(np.median(errors)),
        "largest error %": 100 * float(errors.max()),
    }


def main() -> None:
    options = common.arguments(__doc__, networks=NETWORKS, runtimes=["onnxruntime", "tvm"], count=50, seen=32)
    torch.set_num_threads(1)
    found: Rows = []
    for name in options.networks:
        for runtime in options.runtimes:
            found += rows(name, runtime, options.count, options.seen)
            common.show("so far", found)
    common.finish({"Predicted against measured time of random sub-networks, int8, one thread": found}, options.json)


if __name__ == "__main__":
    main()
