"""Instructions that one inference takes on an emulated 64-bit ARM CPU: TVM artifacts, TVM's default, and ONNX Runtime.

python benchmarks/arm.py [--cpu cortex-a76] [--networks ResNet-20]

Counted by a plugin of qemu, with one thread: the difference between twice as many inferences and as many, so that starting does
not count. Instructions are not time: they say nothing of caches, memory and how many execute at once. What is needed is set up by
`python tests/helpers/arm/make_root.py`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import torch
from emulation import Emulator, arm
from torch import Tensor

import graphopt
from graphopt.backends import onnxruntime, tvm
from graphopt.compiler.recipes import clean
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import Target, find

CALIBRATION = 128


def counted(cpu: Emulator, folder: Path, x: Tensor) -> float:
    library = folder / "model.so"
    return cpu.instructions(lambda emulator, calls: emulator.library(library, [x.numpy()], calls=calls))


def counted_by_onnxruntime(cpu: Emulator, artifact: Any, x: Tensor) -> float:
    steady = replace(cpu, environment={**cpu.environment, "PYTHONHASHSEED": "0"})  # the interpreter starts alike
    with common.workplace() as folder:
        shutil.copyfile(artifact.folder / "model.onnx", folder / "model.onnx")
        return steady.instructions(
            lambda emulator, calls: emulator.onnxruntime({folder: [x.numpy()]}, calls, qdqisint8allowed="1"), calls=10
        )


def by_default(model: Any, x: Tensor, target: Target, folder: Path) -> None:
    """The float network as TVM imports and compiles it by itself."""
    from tvm import compile as compiled
    from tvm.relax.frontend.torch import from_exported_program

    from graphopt.backends.tvm.build import Code, link, linker

    code = Code.of(target.runtime)
    with torch.no_grad():
        module = from_exported_program(torch.export.export(model, (x,)), keep_params_as_input=False)
    link(compiled(module, code.target()), folder / "model.so", linker(code, ""))


def table(name: str, model: Any, calibration: Tensor, x: Tensor, cpu: Emulator) -> common.Rows:
    ours, theirs = find(f"tvm-{cpu.cpu}"), find("arm")
    floating = Graph.capture(model, (x,))
    work = cost.macs(floating)
    run(clean(ours), floating)
    options: dict[str, Any] = {"calibration": calibration, "estimator": "minmax", "measure": False}
    artifact = tvm.lower(floating, ours)
    counts = {"TVM, graphopt's float": counted(cpu, artifact.folder, x)}
    integer = graphopt.optimize(model, x, target=ours, **options).artifact
    counts["TVM, graphopt's int8"] = counted(cpu, integer.folder, x)
    common.log("ONNX Runtime")
    counts["ONNX Runtime, float"] = counted_by_onnxruntime(cpu, onnxruntime.lower(floating, theirs), x)
    integer = graphopt.optimize(model, x, target=theirs, **options).artifact
    counts["ONNX Runtime, graphopt's int8"] = counted_by_onnxruntime(cpu, integer, x)
    common.log("TVM's default")
    with common.workplace() as folder:
        by_default(model, x, ours, folder)
        counts["TVM, its default, float"] = counted(cpu, folder, x)
    reference = counts["TVM, graphopt's float"]
    return [
        {
            "network": name, "compiled by": by, "million instructions": count / 1e6, "per multiply-accumulate": count / work,
            "of graphopt's float": count / reference, "of TVM's default": count / counts["TVM, its default, float"],
        }
        for by, count in counts.items()
    ]  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, cpu="cortex-a76", networks=["ResNet-20"])
    cpu = arm(options.cpu)
    if cpu.missing:
        sys.exit(cpu.missing)
    data, rows = common.data(), []
    for name in options.networks:
        common.log(name)
        if name == "MobileNetV1":
            model, images = data.mobilenet_v1(), data.imagenette("train256")[0]
        else:
            model, images = data.cifar_resnet(20), data.cifar10("train10k")[0]
        rows += table(name, model, images[:CALIBRATION], images[:1], cpu)
    common.finish({f"instructions of one inference, {options.cpu}": rows}, options.json)


if __name__ == "__main__":
    main()
