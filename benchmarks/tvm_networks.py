"""Networks through TVM on this machine: time in float and int8 beside ONNX Runtime, taken in turn, and equality with `simulate`.

python benchmarks/tvm_networks.py [--images 500] [--networks ResNet-20 MobileNetV1]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
import torch

import graphopt
from graphopt import measure
from graphopt.backends import onnxruntime, tvm
from graphopt.graph import Graph
from graphopt.pipeline import run
from graphopt.recipes import clean
from graphopt.targets import find


def measured(name: str, model: Any, calibration: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    example = x[:1]
    results = {
        t: graphopt.optimize(model, example, target=t, calibration=calibration, estimator="minmax", measure=False)
        for t in ("tvm-x86", "x86")
    }
    floating = Graph.capture(model, (example,))
    run(clean(find("tvm-x86")), floating)
    start = time.perf_counter()
    ours = tvm.lower(floating, find("tvm-x86"))
    seconds = time.perf_counter() - start
    integer = results["tvm-x86"].artifact
    calls = {
        "float": ours, "int8": integer, "ONNX Runtime float": onnxruntime.lower(floating, find("x86")),
        "ONNX Runtime int8": results["x86"].artifact,
    }  # fmt: skip
    taken = measure.timings({key: (lambda a=artifact: a(example)) for key, artifact in calls.items()})
    simulation = graphopt.simulate(results["tvm-x86"].graph, "tvm-x86")
    answers = torch.cat([integer(batch) for batch in x.split(50)])
    expected = torch.cat([simulation(batch) for batch in x.split(50)])
    return {
        "network": name, **{key: taken.median(key) for key in calls}, "float compiled in s": seconds,
        "top-1": 100 * float((answers.argmax(1) == y).float().mean()),
        "same class as simulated": 100 * float((answers.argmax(1) == expected.argmax(1)).float().mean()),
        "bit-identical": 100 * float((answers == expected).float().mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--networks", nargs="*", default=["ResNet-20", "MobileNetV1"])
    options = parser.parse_args()
    data, rows = common.data(), []
    for name in options.networks:
        common.log(name)
        if name == "MobileNetV1":
            model, calibration, test = (
                data.mobilenet_v1(),
                data.imagenette("train256")[0][:64],
                data.imagenette("val500"),
            )
        else:
            model, calibration, test = data.cifar_resnet(20), data.cifar10("train10k")[0][:256], data.cifar10("test")
        rows.append(measured(name, model, calibration, *(t[: options.images] for t in test)))
    common.finish({"milliseconds of one image on one thread": rows}, None)


if __name__ == "__main__":
    main()
