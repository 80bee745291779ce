"""Networks through TVM on this machine, untuned: time beside ONNX Runtime, taken in turn, and equality with `simulate`.

python benchmarks/tvm_networks.py [--speed torchvision/resnet18 ...] [--accuracy ResNet-20 MobileNetV1] [--tune 60s]
                                  [--tuner metaschedule]

Time: published architectures at 224 pixels, one image, random weights, which do not change it; the tenth percentile and the
median of rounds in which every way had its turn. On a shared machine, medians of long calls have other processes in them, and a
second thread gains nothing where no second core is free. Accuracy: trained networks on real images.
"""

from __future__ import annotations

import time
from typing import Any

import common
import numpy as np
import torch
import zoo

import graphopt
from graphopt.artifacts.backend import Tuning
from graphopt.backends import onnxruntime, tvm
from graphopt.compiler.recipes import clean
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import find

SPEED = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
]
ACCURACY = ["ResNet-20", "MobileNetV1"]
IMAGES = {"ResNet-20": 2000, "MobileNetV1": 500}


def timed(name: str, rounds: int, tune: str, tuner: Any) -> common.Rows:
    model, (example,), _ = zoo.make(name)
    common.randomise(model)
    calibration = list(common.images(4))
    real = Graph.capture(model, (example,))
    run(clean(find("tvm-x86")), real)
    integers = {
        t: graphopt.optimize(model, example, target=t, calibration=calibration, estimator="minmax", measure=False)
        for t in ("tvm-x86", "x86")
    }
    ours, seconds = {}, {}
    graphs = {"float": real, "int8": integers["tvm-x86"].graph}
    for kind, graph in graphs.items():
        start = time.perf_counter()
        ours[kind] = tvm.lower(graph, find("tvm-x86"))
        seconds[kind] = time.perf_counter() - start
    tuned = (
        {k: tvm.lower(g, find("tvm-x86"), tuning=Tuning(tune, tuner=tuner)) for k, g in graphs.items()} if tune else {}
    )
    for kind, artifact in tuned.items():
        print(f"{name} {kind}: {artifact.manifest.options['tuned']}")
    theirs = {"float": onnxruntime.lower(real, find("x86")), "int8": integers["x86"].artifact}
    ways = {(kind, way, 1): artifacts[kind] for kind in ours for way, artifacts in (("ours", ours), ("theirs", theirs))}
    ways |= {(kind, "ours", 2): ours[kind] for kind in ours}
    ways |= {(kind, "tuned", 1): artifact for kind, artifact in tuned.items()}
    taken = cost.timings(
        {str(way): lambda w=way, a=artifact: with_threads(a, w[2], example) for way, artifact in ways.items()},
        rounds,
        budget_seconds=60,
    )
    low = {way: float(np.quantile(taken.ms[str(way)], 0.1)) for way in ways}
    middle = {way: taken.median(str(way)) for way in ways}
    return [
        {
            "network": name.partition("/")[2], "": kind,
            **{
                f"{label}, {'p10' if figures is low else 'median'}": figures[kind, way, threads]
                for figures in (low, middle)
                for label, way, threads in (("ms", "ours", 1), ("ORT", "theirs", 1), ("2 threads", "ours", 2))
            },
            "of ORT's time": low[kind, "ours", 1] / low[kind, "theirs", 1],
            "over our float": low["float", "ours", 1] / low[kind, "ours", 1],
            "2 threads over 1": low[kind, "ours", 1] / low[kind, "ours", 2],
            "compiled in s": seconds[kind],
            **({"times faster tuned": low[kind, "ours", 1] / low[kind, "tuned", 1]} if tune else {}),
        }
        for kind in ours
    ]  # fmt: skip


def with_threads(artifact: Any, threads: int, example: torch.Tensor) -> Any:
    artifact.set_threads(threads)
    return artifact(example)


def accuracy(name: str) -> dict[str, Any]:
    data = common.data()
    if name == "MobileNetV1":
        model, calibration, test = data.mobilenet_v1(), data.imagenette("train256")[0][:64], data.imagenette("val500")
    else:
        model, calibration, test = data.cifar_resnet(20), data.cifar10("train10k")[0][:256], data.cifar10("test")
    x, y = (t[: IMAGES[name]] for t in test)
    result = graphopt.optimize(model, x[:1], target="tvm-x86", calibration=calibration, measure=False)
    simulation = graphopt.simulate(result.graph, "tvm-x86")
    answers = torch.cat([result.artifact(batch) for batch in x.split(50)])
    expected = torch.cat([simulation(batch) for batch in x.split(50)])
    return {
        "network": name, "images": len(x),
        "float": percent(torch.cat([model(batch) for batch in x.split(50)]).argmax(1) == y),
        "int8 artifact": percent(answers.argmax(1) == y),
        "same class as simulated": percent(answers.argmax(1) == expected.argmax(1)),
        "bit-identical": percent(answers == expected),
    }  # fmt: skip


def percent(holds: torch.Tensor) -> float:
    return 100 * float(holds.float().mean())


def main() -> None:
    options = common.arguments(__doc__, speed=SPEED, accuracy=ACCURACY, rounds=60, tune="", tuner="tiles")
    torch.set_num_threads(1)
    tables: dict[str, common.Rows] = {"Milliseconds of one image of 224x224": [], "Top-1, %": []}
    speed, right = tables.values()
    with torch.no_grad():
        for name in options.speed:
            common.log(name)
            speed += timed(name, options.rounds, options.tune, options.tuner)
        for name in options.accuracy:
            common.log(name)
            right.append(accuracy(name))
    common.finish({title: rows for title, rows in tables.items() if rows}, options.json)


if __name__ == "__main__":
    main()
