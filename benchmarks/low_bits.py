"""Weights and activations of few bits without training: how the codes are chosen, on real images and trained weights.

    nearest         Quantize alone
    CorrectBias     and the mean errors taken out of the biases
    gptq            LearnRounding(method="gptq"): closed forms, layer by layer
    AdaRound        LearnRounding(unit="layer"): from there by gradients, a layer at a time
    block           LearnRounding(unit="block"): the same, a block at a time (BRECQ)

W4A8: weights of 4 bits per channel, activations of 8. Below 8 bits of activation, the first and the last layer keep 8-bit weights
and inputs. 512 unlabeled training images of CIFAR-10 (256 of Imagenette), measured on the whole test set in the simulated graph.
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch
from pruning import Case
from torch import Tensor

from graphopt.graph import Graph
from graphopt.numerics import Format
from graphopt.ops import Layer
from graphopt.passes.correct_bias import CorrectBias
from graphopt.passes.learn_rounding import LearnRounding
from graphopt.passes.quantize import LayerFormat, Quantize
from graphopt.recipes import clean
from graphopt.targets import find

WANTED = {
    ("ResNet-20", "W4A8"): (91.5, 97.7), ("ResNet-20", "W8A8"): (None, 99.4), ("ResNet-20", "W4A4"): (89.5, None),
    ("ResNet-20", "W2A4"): (80.0, None), ("MobileNetV1", "W4A8"): (91.0, None),
}  # fmt: skip
METHODS = ("nearest", "CorrectBias", "gptq", "AdaRound", "block")
EIGHT = Format(bits=8, per_channel=True)


def formats(graph: Graph, activations: Format) -> dict[str, LayerFormat | None]:
    """The first and the last layer with 8-bit weights and inputs, everything between with these activations."""
    sites = [graph.site(node) for node in graph.calls() if Layer.of(node)]
    between = LayerFormat(None, activations)
    return {sites[0]: LayerFormat(EIGHT, activations), sites[-1]: LayerFormat(EIGHT), "*.*": between}


def simulate(case: Case, weights: int, activations: int) -> Graph:
    graph, target = case.graph.clone(), find("x86")
    for transform in clean(target):
        transform(graph)
        graph.refresh()
    low = Format(bits=activations, signed=False, symmetric=False)
    kept = formats(graph, low) if activations < 8 else {}
    Quantize(target, case.batches, weights=Format(bits=weights, per_channel=True), formats=kept)(graph)
    graph.refresh()
    return graph


def answers(case: Case, graph: Graph) -> Tensor:
    with torch.no_grad():
        return torch.cat([graph(x).argmax(1) for x in case.x.split(250)])


def row(case: Case, bits: str, method: str, start: Graph, wanted: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    graph, began = start.clone(), time.process_time()
    if method == "CorrectBias":
        CorrectBias(case.batches)(graph)
    elif method == "gptq":
        LearnRounding(case.batches, method="gptq")(graph)
    elif method != "nearest":
        LearnRounding(case.batches, method="adaround", unit="block" if method == "block" else "layer", **options)(graph)
    seconds = time.process_time() - began
    graph.refresh()
    found = answers(case, graph)
    top1, agreement = (
        WANTED.get((case.name, bits), (None, None)) if method in ("gptq", "AdaRound", "block") else (None, None)
    )
    return {
        "network": case.name,
        "bits": bits,
        "method": method,
        "top-1": 100 * float((found == case.y).double().mean()),
        "agreement": 100 * float((found == wanted).double().mean()),
        "CPU seconds": seconds,
        "wanted top-1": top1,
        "wanted agreement": agreement,
    }


def main() -> None:
    chosen = common.arguments(
        __doc__,
        networks=["ResNet-20", "MobileNetV1"],
        bits=["W4A8", "W4A4", "W2A4", "W8A8"],
        methods=list(METHODS),
        iterations=120,
    )
    torch.set_num_threads(1)
    rows: common.Rows = []
    for name in chosen.networks:
        case = Case(name)
        wanted = answers(case, case.graph)
        for bits in chosen.bits:
            if name != "ResNet-20" and (name, bits) not in WANTED:
                continue
            start = simulate(case, int(bits[1]), int(bits[3]))
            for method in chosen.methods:
                rows.append(row(case, bits, method, start, wanted, {"iterations": chosen.iterations}))
                common.log(str(rows[-1]))
    common.finish({"few bits without training": rows}, chosen.json)


if __name__ == "__main__":
    main()
