"""How much faster a pruned network is, measured in ONNX Runtime: float and int8, one image, one thread.

Half of the multiply-accumulates are removed, every group the same share, once in multiples of what the target's kernels like
(`Kernels.channel_multiple`) and once to any number of channels. Weights are random for ResNet-18 (they do not change the time).
The pruned and the unpruned network run in turn; a ratio is the median of the ratios within a round: 0.5 would be all of the
saving.

Target: at most 0.65 of the unpruned time, float and int8.
"""

from __future__ import annotations

from typing import Any

import common
import torch
import zoo
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.pruning import Prune
from graphopt.targets import find

WANTED = 0.65
SIZES = {"resnet18": 224, "mobilenet_v1": 224, "ResNet-20": 32}
TARGETED = ("resnet18", "mobilenet_v1")


def network(name: str) -> tuple[nn.Module, Tensor]:
    if name == "ResNet-20":
        return common.data().cifar_resnet(20), torch.randn(1, 3, 32, 32)
    if name == "mobilenet_v1":
        return common.data().mobilenet_v1(), next(common.images(1, batch=1))
    model, (example,), _ = zoo.make(f"torchvision/{name}")
    return common.randomise(model), example


def artifacts(graph: Graph, target: Any, batches: list[Tensor]) -> dict[str, Artifact]:
    integer = graphopt.optimize(graph, target=target, calibration=batches, measure=False).artifact
    return {"float": lower(graph, target), "int8": integer}


def rows(name: str, rounds: int) -> common.Rows:
    target = find("host")
    model, example = network(name)
    whole = Graph.capture(model, (example,))
    batches = list(common.images(16, size=SIZES[name]))
    made = {"whole": (whole, artifacts(whole, target, batches))}
    for multiple in dict.fromkeys((2 * target.kernels.channel_multiple, target.kernels.channel_multiple, 8, 1)):
        pruned = whole.clone()
        try:
            Prune(0.5, scope="uniform", round_to=multiple)(pruned)
        except ValueError as error:
            common.log(f"{name}, multiples of {multiple}: {error}")
            continue
        made[f"multiples of {multiple}"] = pruned, artifacts(pruned, target, batches)
    feed = example.numpy()
    calls = {
        f"{label} {kind}": common.runner(artifact.folder / MODEL, feed)
        for label, (_, found) in made.items()
        for kind, artifact in found.items()
    }
    taken = cost.timings(calls, repeats=rounds, budget_seconds=90)
    return [
        {
            "network": name,
            "channels": label,
            "kind": kind,
            "MACs kept": cost.macs(graph) / cost.macs(whole),
            "ms": taken.median(f"{label} {kind}"),
            "time kept": 1 / taken.speedup(f"whole {kind}", f"{label} {kind}"),
            "wanted": WANTED
            if name in TARGETED and label == f"multiples of {target.kernels.channel_multiple}"
            else None,
        }
        for label, (graph, found) in made.items()
        for kind in found
    ]


def main() -> None:
    options = common.arguments(__doc__, models=list(SIZES), rounds=40)
    torch.set_num_threads(1)
    found: common.Rows = []
    for name in options.models:
        common.log(name)
        found += rows(name, options.rounds)
    common.finish({"Half of the multiply-accumulates removed: time kept in ONNX Runtime": found}, options.json)


if __name__ == "__main__":
    main()
