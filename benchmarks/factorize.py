"""How much accuracy is left when layers are factorized, without any fine-tuning.

ResNet-20 and ResNet-32 on CIFAR-10 at half of the multiply-accumulates, calibrated on 512 training images and tested on all
10,000 test images; MobileNetV1 with half of the work of its pointwise convolutions, 256 training images, 500 validation images.

Per network: `Factorize` choosing methods and ranks; each method alone, every layer the same share (`uniform`); the same from the
weights without data, which is what plain decompositions do.

    python benchmarks/factorize.py [--networks ResNet-20] [--int8 0]

`--int8 1` quantizes each `Factorize` result for this machine (`host`, in ONNX Runtime) and tests the artifact, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import common
import torch
from pruning import Case

import graphopt
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import SVD, ChannelWise, Factorize, Separable, Tucker
from graphopt.passes.factorization.chain import Chain

WANTED = {"ResNet-20": 86.0, "ResNet-32": 88.0, "MobileNetV1": 91.0}


def pointwise(graph: Graph) -> int:
    """Multiply-accumulates of convolutions with a kernel of 1."""
    layers = [layer for node in graph.calls() if (layer := Layer.of(node)) and layer.kind == "conv"]
    return sum(Chain.whole(x).macs(x) for x in layers if x.groups == 1 and not any(k > 1 for k in _kernel(x)))


def _kernel(layer: Layer) -> tuple[int, ...]:
    return tuple(layer.weight.meta["val"].shape[2:])


def target(case: Case) -> float:
    """The share of all multiply-accumulates: half, or with half of the pointwise ones."""
    if case.name != "MobileNetV1":
        return 0.5
    return 1 - 0.5 * pointwise(case.graph) / case.macs


def variants(case: Case) -> Iterator[tuple[str, str, Any]]:
    """Scope, data, pass."""
    share, alone = target(case), {"conv1": None, "linear": None}
    if case.name == "MobileNetV1":
        methods: tuple[Any, ...] = (SVD,)
        alone = {"features.0*": None, "classifier*": None}
        yield "chosen", "data", Factorize(target_macs=share, methods=[SVD()], data=case.batches)
        yield (
            "chosen",
            "data, refined",
            Factorize(target_macs=share, methods=[SVD()], data=case.batches, refine_steps=300),
        )
    else:
        methods = (Separable, Tucker, ChannelWise)
        yield "chosen", "data", Factorize(target_macs=share, data=case.batches)
        yield "chosen", "data, nonlinear", Factorize(target_macs=share, data=case.batches, nonlinear=True)
        yield "chosen", "data, refined", Factorize(target_macs=share, data=case.batches, refine_steps=500)
    names = [str(n.target) for n in case.graph.nodes if case.graph.is_constant(n)]
    alone = {pattern: None for pattern in alone if any(n.startswith(pattern.rstrip("*")) for n in names)}
    for method in methods:
        yield "uniform", "data", method(0.5, data=case.batches, layers=alone)
        yield "uniform", "weights only", method(0.5, layers=alone)


def rows(name: str, int8: bool) -> common.Rows:
    case = Case(name)
    found: common.Rows = []
    for scope, data, transform in variants(case):
        label = type(transform).__name__
        common.log(f"{name} {label} {scope} {data}")
        graph = case.graph.clone()
        start = time.perf_counter()
        transform(graph)
        seconds = time.perf_counter() - start
        row = {
            "network": name,
            "method": label,
            "ranks": scope,
            "from": data,
            "MACs kept": cost.macs(graph) / case.macs,
            "parameters kept": cost.parameters(graph) / case.parameters,
            "top-1": case.top1(graph),
            "wanted": WANTED[name] if (scope, data) == ("chosen", "data") else None,
            "seconds": seconds,
        }
        if int8 and scope == "chosen":
            done = graphopt.optimize(graph, target="host", calibration=[b[0] for b in case.batches], measure=False)
            row["int8 artifact"] = case.top1(done.artifact)
        found.append(row)
        common.log(str(row))
    return found


def main() -> None:
    options = common.arguments(__doc__, networks=list(WANTED), int8=0)
    torch.set_num_threads(1)
    found = [row for name in options.networks for row in rows(name, bool(options.int8))]
    common.finish({"Factorized without fine-tuning": found}, options.json)


if __name__ == "__main__":
    main()
