"""How much faster the integer artifact is than the float original in ONNX Runtime: published networks, 224x224.

    python benchmarks/speed.py [--models resnet18] [--targets host x86 arm] [--threads 1 2] [--batches 1 8 32] [--rounds 40]

The float original is what `torch.onnx.export(..., dynamo=True)` writes with its defaults. Weights are random: they do not
change the time. Float original, our artifacts (in ONNX Runtime, and in TVM where it is installed), ONNX Runtime's own
`quantize_static`, and where the package `openvino` is installed the files of float, ours and `quantize_static` in OpenVINO, all
run in turn, several calls each; a ratio is the median of the ratios within a round. The first table is of calls that follow
another of the same network, as on a device that runs one; the second of single calls between those of all others, which leave
nothing of its weights in the caches. `host` is what this machine multiplies fastest, `x86` what processors with VNNI do; `arm` on
x86 shows what the other target's format costs here and says nothing about ARM. More threads than cores say nothing.

Targets (the better runtime, x86 with VNNI, one thread, one image): ResNet-18 3.7 times, MobileNetV2 2.6, MobileNetV3-large 2.3,
EfficientNet-B0 2.2; every multiply-accumulate of convolutions and linear layers in integer; no residual addition in float.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import zoo

import graphopt
from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.backends.onnxruntime import audit
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost
from graphopt.targets import host, host_runtimes

MODELS = ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"]
NAMES = {"host": "ours, ONNX Runtime", "tvm": "ours, TVM", "host, OpenVINO": "ours, OpenVINO"}
AGAIN = "Times faster than float, the same network again and again"
SINGLE = "Times faster than float, single calls among the others'"
Call = Callable[[], Any]
Feed = np.ndarray[Any, Any]


class Network:
    """A float original, what others make of it, and ours, for one batch size; made once, run with several threads."""

    def __init__(self, name: str, batch: int, targets: list[str], folder: Path) -> None:
        model, (example,), _ = zoo.make(f"torchvision/{name}")
        common.randomise(model)
        example = example[:1].expand(batch, *example.shape[1:]).contiguous()
        batches = list(common.images(16))
        self.name, self.batch, self.feed = name, batch, example.numpy()
        self.original = common.export_float(model, example, folder / f"{name}.{batch}.onnx")
        static = (b[:1].expand(batch, *b.shape[1:]).contiguous() for b in batches)
        self.static = common.quantize_static(self.original, folder / f"{name}.{batch}.static.onnx", static)
        chosen: dict[str, Any] = {t: host("onnxruntime") if t == "host" else t for t in targets}
        if registry.available("tvm") and "tvm" in host_runtimes():
            chosen["tvm"] = host("tvm")
        how = {"calibration": batches, "measure": False, "dynamic_batch": batch == 1}
        self.ours = {way: graphopt.optimize(model, example, target=t, **how).artifact for way, t in chosen.items()}

    def calls(self, threads: int) -> dict[str, Call]:
        """What to time: the ways by name, `float` first."""
        calls = {"float": common.runner(self.original, self.feed, threads)}
        calls |= {way: ours(artifact, self.feed, threads) for way, artifact in self.ours.items()}
        calls["quantize_static"] = common.runner(self.static, self.feed, threads)
        if importlib.util.find_spec("openvino"):
            files = {"float": self.original, "quantize_static": self.static}
            files |= {way: artifact.folder / MODEL for way, artifact in self.ours.items() if way != "tvm"}
            calls |= {f"{way}, OpenVINO": in_openvino(path, self.feed, threads) for way, path in files.items()}
        return calls


def ours(artifact: Artifact, feed: Feed, threads: int) -> Call:
    if artifact.manifest.runtime == "onnxruntime":
        return common.runner(artifact.folder / MODEL, feed, threads)
    inputs = torch.from_numpy(feed)

    def call() -> Any:
        artifact.set_threads(threads)
        return artifact(inputs)

    return call


def in_openvino(path: Path, feed: Feed, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    chosen = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = core.read_model(path)
    model.reshape(list(feed.shape))
    request = core.compile_model(model, "CPU", chosen).create_infer_request()
    return lambda: request.infer([feed])


def rows(network: Network, threads: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times faster than float, by way: of calls that follow their like, and of single calls among the others'."""
    calls = network.calls(threads)
    again = cost.timings(calls, repeats=rounds, budget_seconds=60, in_a_row=6)
    single = cost.timings(calls, repeats=rounds, budget_seconds=30, in_a_row=1)
    about = {"model": network.name, "threads": threads, "batch": network.batch}
    names = {way: NAMES.get(way, way) for way in calls if way != "float"}
    first, second = (
        about | {"float ms": taken.median("float")} | {name: taken.speedup("float", way) for way, name in names.items()}
        for taken in (again, single)
    )
    audits = [audit(artifact) for way, artifact in network.ours.items() if way != "tvm"]
    first["integer MACs %"] = 100 * min(seen.share for seen in audits)
    first["float adds"] = sum([f.operator for f in seen.floating].count("Add") for seen in audits)
    common.log(str(first))
    return first, second


def main() -> None:
    options = common.arguments(
        __doc__, models=MODELS, targets=["host", "x86", "arm"], threads=[1], batches=[1], rounds=40
    )
    torch.set_num_threads(1)
    again: common.Rows = []
    single: common.Rows = []
    with common.workplace() as folder:
        for name in options.models:
            for batch in options.batches:
                network = Network(name, int(batch), options.targets, folder)
                for threads in options.threads:
                    one, other = rows(network, int(threads), options.rounds)
                    again.append(one)
                    single.append(other)
    common.finish({AGAIN: again, SINGLE: single}, options.json)


if __name__ == "__main__":
    main()
