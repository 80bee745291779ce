"""Networks as OpenCL source: accuracy by simulation, and the kernels themselves on an OpenCL device, here PoCL on the CPU.

python benchmarks/gpu_source.py [--networks ResNet-20 MobileNetV1] [--targets tvm-opencl adreno]

Needs pyopencl and a device: pip install 'graphopt[opencl]'. The differences say that the source computes what it should; speed on
a GPU was measured nowhere. Where the device has no float16, kernels convert what they load and store.
"""

from __future__ import annotations

from typing import Any

import common
import torch
from opencl_running import OpenCL

import graphopt
from graphopt.formats import FLOAT16_FORMATS
from graphopt.lowering.static_batch import fix_batch
from graphopt.targets import find

IMAGES = {"ResNet-20": (1000, 16), "MobileNetV1": (100, 4)}  # simulated, and run


def table(name: str, target: str, networks: dict[str, Any]) -> dict[str, Any]:
    model, calibration, x, y = networks[name]
    simulated, run = IMAGES[name]
    chosen = find(target)
    x, y = x[:simulated], y[:simulated]
    options: dict[str, Any] = {"calibration": calibration, "estimator": "minmax", "measure": False}
    graph = graphopt.optimize(model, x[:1], target=chosen, **options).graph
    simulation = graph if chosen.formats.weights in FLOAT16_FORMATS else graphopt.simulate(graph, chosen)
    with torch.no_grad():
        expected = torch.cat([simulation(part) for part in x.split(50)])
        reference = torch.cat([model(part) for part in x.split(50)])
    common.log(f"{name}, {target}: {run} images as OpenCL")
    program = OpenCL(fix_batch(graph, run), chosen)
    answers = program(x[:run])
    difference = float((answers - expected[:run]).abs().max() / expected[:run].abs().max())
    return {
        "network": name,
        "target": target,
        "float": f"{100 * float((reference.argmax(1) == y).float().mean()):.2f}",
        f"simulated, top-1 of {simulated}": f"{100 * float((expected.argmax(1) == y).float().mean()):.2f}",
        "same class as float": f"{100 * float((expected.argmax(1) == reference.argmax(1)).float().mean()):.2f} %",
        "kernels": len(program.program.kernels),
        "images run": run,
        "largest difference": f"{difference:.1e}" if difference else "0",
        "same class as simulated": f"{100 * float((answers.argmax(1) == expected[:run].argmax(1)).float().mean()):.0f} %",
    }


def main() -> None:
    args = common.arguments(__doc__, networks=list(IMAGES), targets=["tvm-opencl", "adreno"])
    torch.set_num_threads(1)
    zoo = common.data()
    test, train = zoo.cifar10("test"), zoo.cifar10("train10k")[0][:128]
    photographs = zoo.imagenette("val500")
    networks = {
        "ResNet-20": (zoo.cifar_resnet(20), train, *test),
        "MobileNetV1": (zoo.mobilenet_v1(), zoo.imagenette("train256")[0][:64], *photographs),
    }
    rows = [table(name, target, networks) for name in args.networks for target in args.targets]
    common.finish({"OpenCL source, run on PoCL": rows}, args.json)


if __name__ == "__main__":
    main()
