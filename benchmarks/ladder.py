"""The accuracy ladder: what each way to choose integers buys, without training, on real images and trained weights.

    nearest         calibrated ranges, every weight its nearest code
    CorrectBias     and the mean errors taken out of the biases
    gptq            LearnRounding(method="gptq"): closed forms, layer by layer
    bit_split       LearnRounding(method="bit_split"): a bit plane at a time
    adaquant        LearnRounding(method="adaquant"): weights and steps by gradients, layer by layer
    AdaRound        LearnRounding(method="adaround", unit="layer"): from gptq on by gradients, a layer at a time
    BRECQ           LearnRounding(method="adaround", unit="block"): the same, a block at a time
    no data         what `optimize` does without calibration data: inputs distilled from the batch norms

W4A8: weights of 4 bits per channel, activations of 8. Below 8 bits of activation, the values that layers multiply have them,
what is only added to others has 8; the first and the last layer keep 8-bit weights and inputs ("all" rows: everything has few
bits). 512 unlabeled training images of CIFAR-10 (256 of Imagenette), measured on the whole test set in the simulated graph. CPU
seconds of one thread include calibration. `--climb W3A4 --max-drop 1` shows instead what `optimize` tries to keep the accuracy
(network: the first of `--networks`).
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from typing import Any

import common
import torch
from pruning import Case
from torch import Tensor

from graphopt.compiler.optimize import optimize
from graphopt.compiler.recipes import FEW_BITS, integer, prepare
from graphopt.data.synthesize import without_data
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.targets import Target, find

GRADIENTS: dict[str, dict[str, Any]] = {
    "adaquant": {"method": "adaquant", "unit": "layer"},
    "AdaRound": {"method": "adaround", "unit": "layer"},
    "BRECQ": {"method": "adaround", "unit": "block"},
}
METHODS = ("nearest", "CorrectBias", "gptq", "bit_split", *GRADIENTS, "no data")
EIGHT = Format(bits=8, per_channel=True)


@dataclass(frozen=True)
class Row:
    """Number formats of one row, and what it has to reach: top-1 and agreement with float."""

    weights: int
    activations: int
    per_channel: bool = True
    ends: bool = False  # the first and the last layer keep 8 bits
    top1: float | None = None
    agreement: float | None = None

    @property
    def target(self) -> Target:
        target = find("x86")
        return target.replace(
            weights=replace(target.formats.weights, bits=self.weights, per_channel=self.per_channel),
            activations=replace(target.formats.activations, bits=8 if self.ends else self.activations),
        )

    def formats(self, graph: Graph) -> dict[str, LayerFormat | None]:
        return formats(graph, replace(find("x86").formats.activations, bits=self.activations)) if self.ends else {}


CASES: dict[str, dict[str, Row]] = {
    "ResNet-20": {
        "W8A8": Row(8, 8, agreement=99.4),
        "W4A8": Row(4, 8, top1=91.5, agreement=97.7),
        "W4A4": Row(4, 4, ends=True, top1=89.5),
        "W4A4, all": Row(4, 4),
        "W3A4": Row(3, 4, ends=True),
        "W2A4": Row(2, 4, ends=True, top1=80.0),
    },
    "ResNet-32": {
        "W8A8": Row(8, 8),
        "W4A8": Row(4, 8),
        "W4A4": Row(4, 4, ends=True, top1=91.92),
        "W4A4, all": Row(4, 4),
        "W2A4": Row(2, 4, ends=True),
    },
    "MobileNetV1": {
        "W8A8 per tensor": Row(8, 8, per_channel=False, top1=93.8, agreement=98.0),
        "W4A8": Row(4, 8, top1=91.0),
    },
}
BITS = list(dict.fromkeys(bits for rows in CASES.values() for bits in rows))


def formats(graph: Graph, activations: Format) -> dict[str, LayerFormat | None]:
    """The first and the last layer with 8-bit weights and inputs; in between, what layers multiply with these activations."""
    layers = {node: graph.site(node) for node in graph.calls() if Layer.of(node)}
    first, *_, last = layers.values()
    added = [site for node, site in layers.items() if all(family(user) == "add" for user in node.users)]
    kept = dict.fromkeys(added, LayerFormat(None, replace(activations, bits=8)))
    return {
        first: LayerFormat(EIGHT, activations),
        last: LayerFormat(EIGHT),
        **kept,
        "*.*": LayerFormat(None, activations),
    }


def apply(graph: Graph, passes: list[Any]) -> Graph:
    for transform in passes:
        transform(graph)
        graph.refresh()
    return graph


def quantized(case: Case, row: Row, method: str) -> tuple[Graph, float]:
    """The simulated graph, and the CPU seconds that it took."""
    graph, began = apply(case.graph.clone(), prepare(row.target)), time.process_time()
    if method == "no data":
        batches = without_data(case.graph)  # before the batch norms are folded
        rounding = "gptq" if row.weights < FEW_BITS else "nearest"
        passes = integer(row.target, batches, rounding, row.formats(graph))
    else:
        passes = [Quantize(row.target, case.batches, formats=row.formats(graph))]
        if method == "CorrectBias":
            passes.append(CorrectBias(case.batches))
        elif method != "nearest":
            passes.append(LearnRounding(case.batches, **GRADIENTS.get(method, {"method": method})))
    return apply(graph, passes), time.process_time() - began


def answers(case: Case, graph: Graph) -> Tensor:
    with torch.no_grad():
        return torch.cat([graph(x).argmax(1) for x in case.x.split(250)])


def measured(case: Case, bits: str, row: Row, method: str, wanted: Tensor) -> dict[str, Any]:
    graph, seconds = quantized(case, row, method)
    found = answers(case, graph)
    return {
        "network": case.name,
        "bits": bits,
        "by": method,
        "top-1": 100 * float((found == case.y).double().mean()),
        "agreement": 100 * float((found == wanted).double().mean()),
        "CPU seconds": seconds,
        "wanted": row.top1,
        "wanted agreement": row.agreement,
        "peak MB so far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def climb(case: Case, bits: str, max_drop: float) -> common.Rows:
    """What `optimize(max_drop=...)` tries: judged on half of the test images; the result on the other half, too."""
    row, middle = CASES[case.name][bits], len(case.y) // 2
    halves = [(case.x[:middle], case.y[:middle]), (case.x[middle:], case.y[middle:])]

    def top1(model: Any, half: int = 0) -> float:
        x, y = halves[half]
        with torch.no_grad():
            return 100 * float((torch.cat([model(part).argmax(1) for part in x.split(250)]) == y).double().mean())

    done = optimize(
        case.model, case.x[:2], target=row.target, calibration=case.batches, evaluate=top1, max_drop=max_drop,
        formats=row.formats(apply(case.graph.clone(), prepare(row.target))), measure=False,
    )  # fmt: skip
    first = {"network": case.name, "bits": bits, "largest drop": max_drop}
    rows: common.Rows = [
        {**first, "tried": "(float)", "top-1": done.report.accuracy_before, "other half": top1(case.model, 1)}
    ]
    for tried in done.report.attempts:
        rows.append(
            {**first, "tried": tried.name, "top-1": tried.accuracy, "seconds": tried.seconds, "enough": str(tried.met)}
        )
    rows.append(
        {**first, "tried": "(result)", "top-1": done.report.accuracy_after, "other half": top1(done.artifact, 1)}
    )
    return rows


def main() -> None:
    chosen = common.arguments(__doc__, networks=list(CASES), bits=BITS, methods=list(METHODS), climb=[""], max_drop=0.5)
    torch.set_num_threads(1)
    if chosen.climb != [""]:
        rows = [row for bits in chosen.climb for row in climb(Case(chosen.networks[0]), bits, chosen.max_drop)]
        return common.finish({"climbing until the accuracy is kept": rows}, chosen.json)
    rows = []
    for name in chosen.networks:
        case = Case(name)
        wanted = answers(case, case.graph)
        float_top1 = 100 * float((wanted == case.y).double().mean())
        rows.append({"network": name, "bits": "float", "by": "", "top-1": float_top1, "agreement": 100.0})
        for bits, row in CASES[name].items():
            for method in chosen.methods if bits in chosen.bits else ():
                rows.append(measured(case, bits, row, method, wanted))
                common.log(str(rows[-1]))
    common.finish({"the accuracy ladder, without training": rows}, chosen.json)


if __name__ == "__main__":
    main()
