"""What zeros cost and save: ResNet-20 on the 10,000 CIFAR-10 test images, masked without any training.

One-shot masks of all weights in one ranking, by magnitude and by optimal brain damage (saliency from 512 training images; the
loss is cross-entropy against the network's own classes, or the distance to its own outputs), and the 2:4 pattern. Top-1 in
percent, of the masked float graph in torch and of the int8 artifact for x86 in ONNX Runtime (calibrated on the same 512 images);
files in kB, plain and compressed with zlib. Speed is not in the table: the kernels compute zeros like any other weight.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import common
import torch
from torch import Tensor

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.passes.sparsity import Sparsify, own_labels, own_outputs
from graphopt.targets import find

TARGET = find("x86")
BATCH = 100


def top1(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True))
    return 100 * right / len(y)


def cases(data: list[list[Tensor]]) -> dict[str, Sparsify | None]:
    found: dict[str, Sparsify | None] = {"dense": None}
    amounts: dict[str, dict[str, Any]] = {f"{s:.0%}": {"sparsity": s, "scope": "global"} for s in (0.5, 0.7, 0.8)}
    for name, amount in (amounts | {"2:4": {"pattern": (2, 4)}}).items():
        found[f"{name}, magnitude"] = Sparsify(**amount)
        found[f"{name}, obd"] = Sparsify(**amount, criterion="obd", data=data, loss=own_labels)
        found[f"{name}, obd outputs"] = Sparsify(**amount, criterion="obd", data=data, loss=own_outputs)
    return found


def row(case: str, transform: Sparsify | None, graph: Graph, x: Tensor, y: Tensor, data: Any) -> dict[str, Any]:
    if transform is not None:
        transform(graph)
    plain = lower(graph, TARGET)
    result = graphopt.optimize(graph, target=TARGET, calibration=data, measure=False)
    return {
        "case": case,
        "zeros %": 100 * zero_share(graph),
        "top-1": top1(graph, x, y),
        "int8 top-1": top1(result.artifact, x, y),
        "float kB": plain.size_bytes / 1e3,
        "compressed": plain.compressed_bytes / 1e3,
        "int8 kB": result.artifact.size_bytes / 1e3,
        "int8 compressed": result.artifact.compressed_bytes / 1e3,
    }


def main() -> None:
    options = common.arguments(__doc__, cases="*")
    zoo = common.data()
    x, y = zoo.cifar10("test")
    data = [[part] for part in zoo.cifar10("train10k")[0][:512].split(32)]
    graph = Graph.capture(zoo.cifar_resnet(20), x[:1])
    rows = []
    for case, transform in cases(data).items():
        if not fnmatchcase(case, options.cases):
            continue
        common.log(case)
        rows.append(row(case, transform, graph.clone(), x, y, data))
        print(rows[-1], flush=True)
    common.finish({"ResNet-20, CIFAR-10": rows}, options.json)


if __name__ == "__main__":
    main()
