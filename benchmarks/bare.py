"""Models as C without a runtime: bytes of code, constants and working memory, and time beside TVM's virtual machine.

python benchmarks/bare.py [--networks ResNet-20 MobileNetV1]

One image, one thread. C is called through ctypes from a library of `model.c` and its objects, the artifact as users call it;
they take turns, and medians are reported. "All tensors" is what the workspace would be if no two shared memory.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

import graphopt
from graphopt.backends import tvm
from graphopt.backends.tvm.bare import HELD, held
from graphopt.compiler.recipes import clean
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import find

TARGET = "tvm-x86"


def in_c(folder: Path, x: Tensor, answer: Tensor, workspace_bytes: int) -> Callable[[], Any]:
    """A call of the model on `x`, whose result lies in `answer` afterwards."""
    library = folder.with_name("model.so")
    objects = [folder / name for name in ("model.c", "model_kernels.o", "model_weights.o")]
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", f"-I{folder}", *objects, "-o", library, "-lm"], check=True)
    model = ctypes.CDLL(str(library)).model_run
    memory = np.empty(workspace_bytes + 64, np.uint8)
    aligned = memory.ctypes.data + -memory.ctypes.data % 64
    pointers = [ctypes.c_void_p(p) for p in (x.data_ptr(), answer.data_ptr(), aligned)]

    def call(keep: Any = memory) -> None:
        if model(*pointers):
            raise RuntimeError("the model refused its workspace")

    return call


def measured(name: str, kind: str, graph: Graph, x: Tensor, rounds: int) -> dict[str, Any]:
    artifact = tvm.lower(graph, find(TARGET))
    with common.workplace() as place:
        folder = artifact.compile(place / "bare")
        facts = graphopt.load(folder).manifest.options["objects"]
        calls = held((artifact.folder / HELD).read_bytes(), (artifact.folder / "model.so").read_bytes())
        expected = artifact(x)
        answer = torch.empty_like(expected)
        ours = in_c(folder, x.contiguous(), answer, facts["workspace_bytes"])
        ours()
        taken = cost.timings({"C": ours, "VM": lambda: artifact(x)}, rounds, budget_seconds=30)
        return {
            "network": name, "numbers": kind,
            "kB of code": facts["code_bytes"] / 1e3,
            "kB of constants": facts["weight_bytes"] / 1e3,
            "kB of workspace": facts["workspace_bytes"] / 1e3,
            "of all tensors, %": 100 * facts["workspace_bytes"] / sum(calls.buffers),
            "kB of model.so": artifact.size_bytes / 1e3,
            "ms in C": taken.median("C"),
            "ms in the VM": taken.median("VM"),
            "largest difference": float((answer - expected).abs().max()),
        }  # fmt: skip


def networks(name: str) -> tuple[Any, Tensor, Tensor]:
    """The model, images to calibrate on, and one more."""
    data = common.data()
    if name == "MobileNetV1":
        return data.mobilenet_v1(), data.imagenette("train256")[0][:16], data.imagenette("val500")[0][:1]
    return data.cifar_resnet(20), data.cifar10("train10k")[0][:64], data.cifar10("test")[0][:1]


def main() -> None:
    options = common.arguments(__doc__, networks=["ResNet-20", "MobileNetV1"], rounds=200)
    torch.set_num_threads(1)
    rows: common.Rows = []
    with torch.no_grad():
        for name in options.networks:
            common.log(name)
            model, calibration, x = networks(name)
            real = Graph.capture(model, (x,))
            run(clean(find(TARGET)), real)
            integer = graphopt.optimize(
                model, x, target=TARGET, calibration=calibration, estimator="minmax", measure=False
            )
            for kind, graph in (("float", real), ("int8", integer.graph)):
                rows.append(measured(name, kind, graph, x, options.rounds))
    common.finish({f"C without a runtime, {TARGET}, one image, one thread": rows}, options.json)


if __name__ == "__main__":
    main()
