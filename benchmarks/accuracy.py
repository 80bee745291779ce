"""What quantization costs on real images and trained weights, and how well graph and simulation predict the artifact.

ResNet-20 on the 10,000 CIFAR-10 test images, calibrated on 512 training images, in the formats of both targets; MobileNetV1 on
500 ImageNet validation images of ten classes, calibrated on 256 training images, with weights per channel and per tensor. Each
range estimator, and ONNX Runtime's own `quantize_static` (min-max, QDQ, activations as the target's, signed weights) for
comparison. Top-1 and agreement are in percent:

    agreement   images on which the artifact's class is that of the float original, in ONNX Runtime
    sim. top-1  of the simulated graph, in torch
    same class  images on which artifact and simulated graph say the same
    steps       largest difference of a logit between the two, in steps of an 8-bit grid over the logits' range
    int. ...    the same for artifact and `graphopt.simulate`, which computes with the kernels' integers
    int. equal  logits on which these two are bit-identical

Wanted: ResNet-20 at least 91.7 with agreement 99.2, both formats; MobileNetV1 at least 94.0 with agreement 99.4 per channel and
93.0 per tensor; same class 99.9, at most one step apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

import graphopt
from graphopt.formats import Format
from graphopt.passes.quantization.ranges import ESTIMATORS
from graphopt.targets import Target, find, machine_here

PER_TENSOR = find("x86").replace(weights=Format(8, True, True, False))
CASES: dict[str, tuple[str, Target, float, float | None]] = {  # network, target, wanted top-1 and agreement
    "ResNet-20 x86": ("resnet20", find("x86"), 91.7, 99.2),
    "ResNet-20 arm": ("resnet20", find("arm"), 91.7, 99.2),
    "MobileNetV1 per channel": ("mobilenet_v1", find("x86"), 94.0, 99.4),
    "MobileNetV1 per tensor": ("mobilenet_v1", PER_TENSOR, 93.0, None),
}


def network(name: str) -> tuple[Any, Tensor, Tensor, list[Tensor], int]:
    """Model, test images, labels, calibration batches, batch size for running in torch."""
    zoo = common.data()
    if name.startswith("resnet"):
        (x, y), (typical, _) = zoo.cifar10("test"), zoo.cifar10("train10k")
        return zoo.cifar_resnet(int(name.removeprefix("resnet"))), x, y, list(typical[:512].split(32)), 100
    x, y = zoo.imagenette("val500")
    return zoo.mobilenet_v1(), x, y, list(zoo.imagenette("train256")[0].split(8)), 4


def logits(model: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch)])


def top1(z: Tensor, y: Tensor) -> float:
    return 100 * float((z.argmax(1) == y).double().mean())


def agreement(a: Tensor, b: Tensor) -> float:
    return 100 * float((a.argmax(1) == b.argmax(1)).double().mean())


def rows(case: str, estimators: list[str], loaded: dict[str, Any], folder: Path) -> common.Rows:
    name, target, wanted, wanted_agreement = CASES[case]
    if name not in loaded:
        loaded.clear()  # one set of images in memory
        model, x, y, batches, batch = network(name)
        loaded[name] = (model, x, y, batches, batch, logits(model, x, batch))
        common.export_float(model, x[:1], folder / f"{name}.onnx", dynamic_batch=True)
    model, x, y, batches, batch, truth = loaded[name]
    found: common.Rows = []
    for estimator in estimators:
        common.log(f"{case}, {estimator}")
        result = graphopt.optimize(model, x[:1], target=target, calibration=batches, estimator=estimator, measure=False)
        simulated = logits(result.graph, x, batch)
        integer = logits(graphopt.simulate(result.graph, target, machine=machine_here()), x, batch)
        deployed = logits(result.artifact, x, batch)
        step = float(truth.max() - truth.min()) / 255
        found.append(
            {
                "case": case,
                "by": estimator,
                "float top-1": top1(truth, y),
                "sim. top-1": top1(simulated, y),
                "top-1": top1(deployed, y),
                "wanted": wanted,
                "agreement": agreement(deployed, truth),
                "wanted agr.": wanted_agreement,
                "same class": agreement(deployed, simulated),
                "steps": float((deployed - simulated).abs().max()) / step,
                "median steps": float((deployed - simulated).abs().median()) / step,
                "int. same class": agreement(deployed, integer),
                "int. steps": float((deployed - integer).abs().max()) / step,
                "int. equal": 100 * float((deployed == integer).double().mean()),
                "logit step": step,
            }
        )
        print(found[-1], flush=True)
    common.log(f"{case}, quantize_static")
    signed, per_channel = target.formats.activations.signed, target.formats.weights.per_channel
    reference = common.quantize_static(
        folder / f"{name}.onnx", folder / "static.onnx", iter(batches), per_channel=per_channel, signed=signed
    )
    theirs = common.answers(reference, x, batch)
    found.append(
        {
            "case": case,
            "by": "quantize_static",
            "float top-1": top1(truth, y),
            "top-1": top1(theirs, y),
            "agreement": agreement(theirs, truth),
        }
    )
    print(found[-1], flush=True)
    return found


def main() -> None:
    options = common.arguments(__doc__, cases=list(CASES), estimators=list(ESTIMATORS))
    torch.set_num_threads(1)
    loaded: dict[str, Any] = {}
    with common.workplace() as folder:
        tables = {case: rows(case, options.estimators, loaded, folder) for case in options.cases}
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
