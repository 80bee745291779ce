"""Does compile time grow with the graph, or faster? CIFAR ResNets of growing depth, random weights, 16 calibration images.

Capture, every pass of the x86 recipe (and of the per-tensor one, which equalizes), checks, and lowering; milliseconds per
operator of the captured graph must not grow.
"""

from __future__ import annotations

import statistics
import time

import common
import torch
from torch import nn

from graphopt.backends.onnxruntime import lower
from graphopt.compiler.recipes import recipe
from graphopt.data.calibration import Calibration
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import find

DEPTHS = [20, 32, 56, 110]
REPEATS = 3


def seconds(model: nn.Module) -> tuple[int, dict[str, float]]:
    """Operators captured, and seconds of every stage."""
    example = torch.randn(1, 3, 32, 32)
    batches = list(common.images(16, 32, batch=16))
    taken: dict[str, float] = {}
    start = time.perf_counter()
    graph = Graph.capture(model, example)
    taken["capture"] = time.perf_counter() - start
    count = len(graph.calls())
    for label, target in (
        ("", find("x86")),
        (" (per tensor)", find("x86").replace(weights=Format(8, True, True, False))),
    ):
        fresh = graph.clone()
        start = time.perf_counter()
        steps = run(recipe(target, Calibration(batches, fresh)), fresh)
        whole = time.perf_counter() - start
        if not label:
            taken |= {s.name: s.seconds for s in steps}
            taken["checks between passes"] = whole - sum(s.seconds for s in steps)
            start = time.perf_counter()
            lower(fresh, target)
            taken["lower"] = time.perf_counter() - start
        else:
            names = {"FoldConstantChannels", "EqualizeChannels", "AbsorbHighBias"}
            taken |= {s.name + label: s.seconds for s in steps if s.name in names}
    taken["all"] = sum(taken.values())
    return count, taken


def main() -> None:
    options = common.arguments(__doc__, depths=DEPTHS, repeats=REPEATS)
    torch.set_num_threads(1)
    zoo = common.data()
    counts: dict[int, int] = {}
    samples: dict[int, list[dict[str, float]]] = {depth: [] for depth in options.depths}
    seconds(common.randomise(zoo.CifarResNet(options.depths[0])))  # imports and caches
    for _ in range(options.repeats):
        for depth in options.depths:
            common.log(f"depth {depth}")
            counts[depth], taken = seconds(common.randomise(zoo.CifarResNet(depth)))
            samples[depth].append(taken)
    first, last = options.depths[0], options.depths[-1]
    rows: common.Rows = []
    for stage in samples[first][0]:
        median = {d: statistics.median(s[stage] for s in samples[d]) for d in options.depths}
        per_node = {d: 1000 * median[d] / counts[d] for d in options.depths}
        row: dict[str, object] = {"stage": stage}
        row |= {f"depth {d}: s": median[d] for d in options.depths}
        row |= {f"{d}: ms/op": per_node[d] for d in options.depths}
        row["growth per op"] = per_node[last] / per_node[first]
        rows.append(row)
    title = "Compile time by stage; operators captured: " + ", ".join(f"depth {d} {n}" for d, n in counts.items())
    common.finish({title: rows}, options.json)


if __name__ == "__main__":
    main()
