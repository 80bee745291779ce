"""What Qualcomm's HTP emulator answers, and how well the simulation predicts it: real images and trained weights.

ResNet-20 and ResNet-32 on CIFAR-10 test images, calibrated on 512 training images; MobileNetV1 on ImageNet validation images
of ten classes, calibrated on 256; u8 values, and u16 for ResNet-20. Every network runs wholly on HTP (`artifact.on("htp:...")`),
one image at a time. Top-1 and agreement are in percent:

    simulation   `graphopt.simulate`
    same class   images on which HTP's class is that of the simulation
    steps        largest and mean difference of a logit between the two, in steps of an 8-bit grid over the logits' range
    conv. codes off  codes of 8-bit convolutions that are not the simulation's, on four images (not of MobileNetV1, whose
                 artifact has folded the padding that the simulation computes)
    float agr.   images on which HTP's class is that of the float original

Wanted: top-1 within 0.5 of the simulation's, same class at least 99. Needs graphopt[qnn].
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch
from accuracy import agreement, logits, network, top1
from torch import Tensor

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target, find
from graphopt.utils.progress import track

CODES = 4  # images on which codes inside are compared
U8 = find("hexagon")
U16 = U8.replace(activations=U8.formats.more_activations[0])
CASES: dict[str, tuple[str, Target, tuple[str, ...]]] = {  # network, target, architectures
    "ResNet-20": ("resnet20", U8, ("v68", "v73")),
    "ResNet-20, 16-bit values": ("resnet20", U16, ("v73",)),
    "ResNet-32": ("resnet32", U8, ("v73",)),
    "MobileNetV1": ("mobilenet_v1", U8, ("v73",)),
}


def measure(model: Any, images: Tensor, description: str) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(image) for image in track(images.split(1), description)])


def off(simulation: Simulation, there: Artifact, images: Tensor) -> float | None:
    """Per cent of the codes of convolutions, each given HTP's own inputs, that are not the simulation's."""
    lines = [line for image in images.split(1) for line in simulation.mismatches(there, image) if line.kernel == "conv"]
    return 100 * sum(line.differing for line in lines) / sum(line.total for line in lines) if lines else None


def rows(case: str, count: int, few: int) -> common.Rows:
    name, target, architectures = CASES[case]
    model, x, y, batches, batch = network(name)
    x, y = (t[: few if name == "mobilenet_v1" else count] for t in (x, y))
    common.log(case)
    result = graphopt.optimize(model, x[:1], target=target, calibration=batches, measure=False)
    simulation = graphopt.simulate(result.graph, target)
    truth, simulated = logits(model, x, batch), measure(simulation, x, "simulating")
    step = float(truth.max() - truth.min()) / 255
    found: common.Rows = []
    for architecture in architectures:
        there = result.artifact.on(f"htp:{architecture}")
        start = time.perf_counter()
        answers = measure(there, x, there.device)
        seconds = time.perf_counter() - start
        apart = (answers - simulated).abs() / step
        found.append(
            {
                "network": case,
                "device": there.device,
                "images": len(x),
                "float": top1(truth, y),
                "simulation": top1(simulated, y),
                "HTP": top1(answers, y),
                "same class": agreement(answers, simulated),
                "float agr.": agreement(answers, truth),
                "steps": float(apart.max()),
                "mean steps": float(apart.mean()),
                "conv. codes off": None if name == "mobilenet_v1" else off(simulation, there, x[:CODES]),
                "left to the CPU": len(result.report.float_operators),
                "emulator, s an image": seconds / len(x),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    options = common.arguments(__doc__, cases=list(CASES), images=2000, imagenet_images=250)
    torch.set_num_threads(1)
    tables = [row for case in options.cases for row in rows(case, options.images, options.imagenet_images)]
    common.finish({"HTP against the simulation": tables}, options.json)


if __name__ == "__main__":
    main()
