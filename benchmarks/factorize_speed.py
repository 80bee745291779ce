"""How much faster a factorized network is, measured in ONNX Runtime: float and int8, one image, one thread.

    half        `Factorize(target_macs=0.5)`, ranks in multiples that the kernels like, every chain measured faster than its layer
    latency     `Factorize(max_latency=...)`: the time is the target; never slower than the original
    uniform     the classical way, for ResNet-18: one method, every layer half of its work, any rank

Weights are random (they do not change the time). The factorized and the whole network run in turn; a ratio is the median of the
ratios within a round.

    python benchmarks/factorize_speed.py [--models resnet18 vgg16] [--latency 0.8] [--json figures.json]

Target: at most 0.7 of the time at half of the multiply-accumulates for VGG-16 and ResNet-18, and never over 1 in `latency`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import torch
import zoo

from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.compiler.latency import LatencyTimer
from graphopt.compiler.recipes import clean, recipe
from graphopt.data.calibration import synthetic
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.factorization import SVD, ChannelWise, Factorize, Separable, Tucker
from graphopt.passmanager.runner import run
from graphopt.targets import find

WANTED = {"resnet18": 0.7, "vgg16": 0.7}


def variants(name: str, latency: float, timer: LatencyTimer, multiple: int) -> Iterator[tuple[str, list[Any]]]:
    if name in WANTED:
        yield "half", [Factorize(target_macs=0.5, round_to=multiple, timer=timer)]
    if name == "resnet18":
        yield "half, untimed", [Factorize(target_macs=0.5)]
        for method in (Separable, Tucker, ChannelWise):
            yield f"uniform {method.__name__}", [method(0.5), SVD(0.5)]
    yield f"latency {latency}", [Factorize(max_latency=latency, round_to=multiple, timer=timer)]


def runner(graph: Graph, integer: bool) -> Any:
    """A function that runs the lowered graph on its example."""
    target, copy = find("host"), graph.clone()
    run(recipe(target, synthetic(copy), estimator="minmax") if integer else clean(target), copy, verify=False)
    artifact = lower(copy, target)
    return common.runner(artifact.folder / MODEL, graph.example.tensors()[0].numpy())


def rows(name: str, latency: float, rounds: int) -> common.Rows:
    model, (example,), _ = zoo.make(f"torchvision/{name}")
    whole = Graph.capture(common.randomise(model), example[:1])
    found: common.Rows = []
    for integer in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            timer = LatencyTimer("host", integer=integer, cache=Path(folder) / "latency.json")
            made = {"whole": whole}
            for label, passes in variants(name, latency, timer, find("host").kernels.channel_multiple):
                common.log(f"{name} {'int8' if integer else 'float'} {label}")
                graph = whole.clone()
                run(passes, graph, verify=False)
                made[label] = graph
        taken = cost.timings(
            {label: runner(graph, integer) for label, graph in made.items()}, rounds, budget_seconds=120
        )
        for label, graph in made.items():
            found.append(
                {
                    "network": name,
                    "kind": "int8" if integer else "float",
                    "factorized": label,
                    "MACs kept": cost.macs(graph) / cost.macs(whole),
                    "ms": taken.median(label),
                    "time kept": 1 / taken.speedup("whole", label),
                    "wanted": WANTED.get(name) if label == "half" else None,
                }
            )
            common.log(str(found[-1]))
    return found


def main() -> None:
    options = common.arguments(
        __doc__, models=["resnet18", "vgg16", "mobilenet_v2", "vit_b_16"], latency=0.8, rounds=30
    )
    torch.set_num_threads(1)
    found = [row for name in options.models for row in rows(name, options.latency, options.rounds)]
    common.finish({"Factorized networks: time kept in ONNX Runtime": found}, options.json)


if __name__ == "__main__":
    main()
