"""What a budget costs in accuracy: widths, ranks and blocks chosen together, then int8, with and without training.

    python benchmarks/budget.py --rows rows.jsonl [--cases ResNet-20 MobileNetV1] [--epochs 0 5]

ResNets: 10,000 test images of CIFAR-10; calibrated on 512 training images, trained on 9,000 of them, flipped and shifted, with
the original as teacher and labels (AdamW 1e-3); the epoch is chosen by mixtures of held-out images. MobileNetV1: 500 test images
of ten ImageNet classes, calibrated on 256, not trained. `share` is what was measured of the artifact: of the
multiply-accumulates, or of the time of the float original in ONNX Runtime.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from cifar_training import Augmented, Cifar, accuracy
from training_rows import read, record

import graphopt
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.training import Unseen

CASES: dict[str, tuple[str, dict[str, float], str]] = {
    "ResNet-20": ("ResNet-20", {"macs": 0.73}, "onnxruntime"),
    "ResNet-56": ("ResNet-56", {"macs": 0.47}, "onnxruntime"),
    "ResNet-20, time": ("ResNet-20", {"latency": 0.25}, "onnxruntime"),
    "MobileNetV1": ("MobileNetV1", {"latency": 0.25}, "onnxruntime"),
    "MobileNetV1, TVM": ("MobileNetV1", {"latency": 0.25}, "tvm"),
}


def run(network: str, budget: dict[str, float], runtime: str, epochs: int) -> dict[str, Any]:
    data, timed = common.data(), "latency" in budget
    how: dict[str, Any] = {"budget": budget, "runtime": runtime, "measure": timed}
    if network == "MobileNetV1":
        model = data.mobilenet_v1().eval()
        (x, y), (images, _) = data.imagenette("val500"), data.imagenette("train256")
        calibration = list(images.split(16))
    else:
        cifar = Cifar()
        model, (x, y) = data.cifar_resnet(int(network.rpartition("-")[2])).eval(), cifar.test
        calibration = list(cifar.calibration.split(64))
        if epochs:
            how |= {"train": Augmented(cifar.x, cifar.y), "epochs": epochs, "rate": 1e-3}
            how |= {"evaluate": Unseen(cifar.held_out[0], model)}
    start = time.process_time()
    result = graphopt.optimize(model, x[:1], target="host", calibration=calibration, **how)
    minutes = (time.process_time() - start) / 60
    if timed:
        assert result.report.latency is not None
        share = 1 / result.report.latency.speedup
    else:
        share = cost.macs(result.graph) / cost.macs(Graph.capture(model, x[:1]))
    return {
        "share": share,
        "CPU min": minutes,
        "float": accuracy(model, x, y),
        "int8": accuracy(result.artifact, x, y),
    }


def main() -> None:
    options = common.arguments(__doc__, rows=Path("rows.jsonl"), cases=list(CASES), epochs=[0])
    torch.set_num_threads(1)
    for case in options.cases:
        network, budget, runtime = CASES[case]
        for epochs in map(int, options.epochs):
            wanted = ", ".join(f"{name} {amount}" for name, amount in budget.items())
            key = {"network": network, "budget": wanted, "runtime": runtime, "epochs": epochs}
            record(options.rows, key, partial(run, network, budget, runtime, epochs))
    common.finish({"Budgets": read(options.rows)}, options.json)


if __name__ == "__main__":
    main()
