"""Ranges and biases: what estimators, RefineRanges and CorrectBias with and without data buy, on real images and trained weights.

    range        the estimator of `Quantize`; `+ refined`: RefineRanges behind it
    then         nearest | analytic: CorrectBias() | bias: CorrectBias(data) | gptq: LearnRounding(data, method="gptq")

512 unlabeled training images of CIFAR-10, set 0, 1, 2, ... one after the other in the file (256 of Imagenette), measured on the
whole test set in the simulated graph; `--calibrate` and `--images` take the first so many of each instead. Below 8 bits of
activation, the first and the last layer keep 8-bit weights and inputs. W8 tensor: one scale per weight, without equalization.
CPU seconds of one thread: everything behind the capture.
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch
from ladder import answers, formats
from pruning import BATCH, Case

from graphopt.compiler.recipes import clean
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.targets import find

ROWS = {
    "bias": [
        ("ResNet-20", "W4A8", "mse", ["nearest", "analytic", "bias"]),
        ("MobileNetV1", "W4A8", "mse", ["nearest", "analytic", "bias"]),
        ("MobileNetV1", "W8A8 tensor", "mse", ["nearest", "analytic", "bias"]),
    ],
    "W8A8": [
        ("ResNet-20", "W8A8", how, ["bias", "gptq"])
        for how in ("mse", "output_mse", "mse + refined", "minmax", "percentile", "entropy", "aciq")
    ],
    "W4A4": [
        ("ResNet-20", "W4A4", how, ["gptq"])
        for how in ("mse", "output_mse", "aciq", "mse + refined", "minmax", "percentile", "entropy")
    ],
}  # fmt: skip


def simulate(case: Case, bits: str, how: str, batches: list[Any]) -> Graph:
    estimator, _, refined = how.partition(" + ")
    graph, target = case.graph.clone(), find("x86")
    for transform in clean(target):
        transform(graph)
        graph.refresh()
    low = Format(bits=int(bits[3]), signed=False, symmetric=False)
    kept = formats(graph, low) if low.bits < 8 else {}
    weights = Format(bits=int(bits[1]), per_channel="tensor" not in bits)
    Quantize(target, batches, estimator=estimator, weights=weights, formats=kept)(graph)
    graph.refresh()
    if refined:
        RefineRanges(batches)(graph)
        graph.refresh()
    return graph


def finished(graph: Graph, then: str, batches: list[Any]) -> Graph:
    graph = graph.clone()
    if then == "gptq":
        LearnRounding(batches, method="gptq")(graph)
    elif then != "nearest":
        CorrectBias(batches if then == "bias" else None)(graph)
    graph.refresh()
    return graph


def main() -> None:
    chosen = common.arguments(__doc__, tables=list(ROWS), sets=[0], only=[""], then=[""], calibrate=0, images=0)
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {}
    cases: dict[str, Any] = {}
    for table in chosen.tables:
        rows = tables.setdefault(table, [])
        for name, bits, how, endings in ROWS[table]:
            if name not in cases:
                case = Case(name)
                if chosen.images:
                    case.x, case.y = case.x[: chosen.images], case.y[: chosen.images]
                cases = {name: (case, answers(case, case.graph))}
            case, wanted = cases[name]
            for number in chosen.sets if name != "MobileNetV1" else [0]:
                if chosen.only != [""] and how not in chosen.only:
                    continue
                batches = case.batches
                if number:
                    images = common.data().cifar10("train10k")[0][512 * number : 512 * (number + 1)]
                    batches = [[part] for part in images.split(BATCH)]
                if chosen.calibrate:
                    batches = batches[: -(-chosen.calibrate // BATCH)]
                began = time.process_time()
                start = simulate(case, bits, how, batches)
                ranges = time.process_time() - began
                for then in endings if chosen.then == [""] else chosen.then:
                    began = time.process_time()
                    graph = finished(start, then, batches)
                    seconds = ranges + time.process_time() - began
                    found = answers(case, graph)
                    rows.append(
                        {
                            "network": name,
                            "bits": bits,
                            "range": how,
                            "then": then,
                            "set": number,
                            "top-1": 100 * float((found == case.y).double().mean()),
                            "agreement": 100 * float((found == wanted).double().mean()),
                            "CPU seconds": seconds,
                        }
                    )
                    common.log(str(rows[-1]))
    common.finish(tables, chosen.json)


if __name__ == "__main__":
    main()
