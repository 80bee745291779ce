"""int8 programs of ExecuTorch with XNNPACK: ours, its own quantizer's, and float, on trained networks.

ResNet-20 on the 10,000 CIFAR-10 test images, calibrated on 512 training images; MobileNetV1 on 500 ImageNet validation images of
ten classes, calibrated on 256 training images. "XNNPACKQuantizer" is ExecuTorch's post-training quantization as its manual has
it: weights per channel, the same images, `to_edge_transform_and_lower`. All are files that the same runtime runs, one thread:

    top-1, agreement   in percent; agreement with the float original
    ms                 of one image, median; the three programs have their turns, so that ratios hold
    speed              of the float program's
    integer            share of multiply-accumulates that XNNPACK computes in integer
    equal              logits that are those of `graphopt.simulate` to the last bit, in percent
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from accuracy import agreement, logits, network, top1
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.registry import backend
from graphopt.backends.executorch.compiling import Delegated
from graphopt.backends.executorch.running import Program
from graphopt.ir.cost import timings
from graphopt.ir.graph import Graph
from graphopt.targets import find

NETWORKS = {"ResNet-20, CIFAR-10": "resnet20", "MobileNetV1, 10 ImageNet classes": "mobilenet_v1"}
TARGET = find("executorch")
Compute = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def own_quantizer(model: nn.Module, example: Tensor, batches: list[Tensor]) -> tuple[bytes, list[Any]]:
    """The `.pte` of ExecuTorch's own post-training quantization, and the calls of its program."""
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    theirs = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    quantizer = theirs.XNNPACKQuantizer().set_global(theirs.get_symmetric_quantization_config(is_per_channel=True))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = pt2e.prepare_pt2e(torch.export.export(model, (example,), strict=False).module(), quantizer)
        for batch in batches:
            for image in batch.split(1):
                prepared(image)
        delegated = Delegated(torch.export.export(pt2e.convert_pt2e(prepared), (example,), strict=False))
    return delegated.content(), delegated.calls


def of_each(compute: Compute, x: Tensor) -> Tensor:
    """Answers of a program that takes one image."""
    return torch.cat([torch.from_numpy(compute(image.numpy())) for image in x.split(1)])


def program(content: bytes) -> Compute:
    opened = Program(content, "benchmark.pte")
    return lambda x: opened([x], threads=1)[0]


def rows(title: str, rounds: int) -> common.Rows:
    model, x, y, batches, batch = network(NETWORKS[title])
    truth = logits(model, x, batch)
    result = graphopt.optimize(model, x[:1], target=TARGET, calibration=batches, measure=False)
    plain = backend("executorch").lower(Graph.capture(model, x[:1]), TARGET)
    common.log(f"{title}: ExecuTorch's own quantizer")
    content, calls = own_quantizer(model, x[:1], batches)
    files = {
        "float": (plain.folder / "model.pte").read_bytes(),
        "graphopt": (result.artifact.folder / "model.pte").read_bytes(),
        "XNNPACKQuantizer": content,
    }
    computes = {name: program(file) for name, file in files.items()}
    image = x[:1].numpy()
    timed = timings({name: lambda run=run: run(image) for name, run in computes.items()}, repeats=rounds)
    simulated = logits(graphopt.simulate(result.graph, TARGET), x, batch)
    layers = [call.where for call in calls if call.kind in ("convolution", "linear", "addmm")]
    shares = {
        "graphopt": backend("executorch").audit(result.artifact).share,
        "XNNPACKQuantizer": layers.count("xnnpack integer") / len(layers),
        "float": 0.0,
    }
    found: common.Rows = []
    for name, run in computes.items():
        answers = of_each(run, x)
        found.append({
            "network": title, "by": name, "top-1": top1(answers, y), "agreement": agreement(answers, truth),
            "ms": timed.median(name), "speed": timed.speedup("float", name), "kB": len(files[name]) / 1e3,
            "integer": 100 * shares[name],
            "equal": 100 * float((answers == simulated).double().mean()) if name == "graphopt" else None,
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


def main() -> None:
    options = common.arguments(__doc__, networks=list(NETWORKS), rounds=60)
    torch.set_num_threads(1)
    tables = {"Programs of ExecuTorch": [row for title in options.networks for row in rows(title, options.rounds)]}
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
