"""Predicted against measured time of random sub-networks: how far sums over parts can be believed.

    python benchmarks/predicted_latency.py [--networks ResNet-20 torchvision/mobilenet_v2] [--runtimes onnxruntime tvm]
                                           [--count 50]

Widths of all groups, and some ranks and residual blocks, are drawn at random; each network is lowered in int8 with made-up
weights and timed in turn with the whole one. Predicted: the times of its parts, measured by themselves at some widths
(`PartTimes`), times what the whole one takes for the sum of its parts. R^2 is that of the prediction itself (not of a line
fitted to it); errors are relative.
"""

from __future__ import annotations

import random
from typing import Any

import common
import numpy as np
import torch
import zoo

from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.budget.ranks import Ranks
from graphopt.compiler.budget.spending import Spending
from graphopt.compiler.budget.widths import Widths
from graphopt.compiler.made_up import lowered
from graphopt.compiler.part_times import PartTimes
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.searching import Problem
from graphopt.targets import host

NETWORKS = ["ResNet-20", "torchvision/mobilenet_v2"]
RARE = ("rank", "block")  # one in five is changed
WANTED = {"R^2": 0.95, "median error %": 5.0}


def spending(name: str, target: Any) -> Spending:
    if name.startswith("torchvision"):
        model, (example,), _ = zoo.make(name)
        common.randomise(model)
    else:
        model, example = common.data().cifar_resnet(int(name.rpartition("-")[2])), torch.randn(1, 3, 32, 32)
    graph = Graph.capture(model.eval(), example)
    gather_shuffles(graph)
    trace = Trace(graph)
    prune = Prune(keep_ratio=0.5, round_to=target.kernels.channel_multiple)
    data = [[torch.randn(4, *example.shape[1:])]]
    ranks = Ranks.of(graph, data, target.kernels.channel_multiple)
    return Spending.made(graph, trace, Widths.of(prune, graph, trace), ranks, data, prune)


def call(graph: Graph, target: Any) -> Any:
    artifact = lowered(graph, target)
    artifact.set_threads(1)
    return lambda: artifact.milliseconds(*graph.example.args)


def row(name: str, runtime: str, count: int) -> dict[str, Any]:
    target, drawn = host(runtime), random.Random(0)
    chosen = spending(name, target)
    problem = Problem(chosen.choices, {"ms": chosen.costs.milliseconds(PartTimes(target))}, {})
    whole = call(chosen.mock(problem.first), target)
    predicted, measured = [], []
    for number in range(count):
        draft = tuple(
            drawn.randrange(len(c.options)) if c.kind not in RARE or drawn.random() < 0.2 else 0 for c in chosen.choices
        )
        if problem.cost("ms", draft) > problem.cost("ms", problem.first):  # ranks that the widths do not have
            draft = tuple(0 if c.kind == "rank" else o for c, o in zip(chosen.choices, draft, strict=True))
        other = call(chosen.mock(draft), target)
        taken = cost.timings({"whole": whole, "part": other}, repeats=15, budget_seconds=2, clocked=True)
        measured.append(1 / taken.speedup("whole", "part"))
        predicted.append(problem.cost("ms", draft) / problem.cost("ms", problem.first))
        common.log(f"{name}, {runtime}, {number + 1}: predicted {predicted[-1]:.3f}, measured {measured[-1]:.3f}")
    p, m = np.array(predicted), np.array(measured)
    return {
        "network": name,
        "runtime": runtime,
        "networks": count,
        "shares": f"{m.min():.2f} to {m.max():.2f}",
        "R^2": 1 - float(((p - m) ** 2).sum() / ((m - m.mean()) ** 2).sum()),
        "correlation": float(np.corrcoef(p, m)[0, 1]),
        "median error %": 100 * float(np.median(np.abs(p / m - 1))),
        "largest error %": 100 * float(np.abs(p / m - 1).max()),
    }


def main() -> None:
    options = common.arguments(__doc__, networks=NETWORKS, runtimes=["onnxruntime", "tvm"], count=50)
    torch.set_num_threads(1)
    rows = [row(name, runtime, options.count) for name in options.networks for runtime in options.runtimes]
    common.finish({"Predicted against measured time of random sub-networks, int8, one thread": rows}, options.json)


if __name__ == "__main__":
    main()
