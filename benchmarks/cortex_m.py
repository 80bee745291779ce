"""MLPerf Tiny's ResNet-8 as C on Cortex-M7: accuracy, instructions and modelled cycles, flash and memory, int8 beside float.

python benchmarks/cortex_m.py [--images 10000] [--json benchmarks/results/cortex_m.json]

The linked program runs under qemu, whose counts of blocks of instructions llvm-mca turns into cycles (`tests/helpers/cycles.py`):
its model knows the core's pipelines, not flash, caches or branches. Figures are the difference between two inferences and one.
Accuracy is that of the float network and of the simulated integers, which the program is compared with on the first images.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import cycles
import torch
from c_program import answers, program
from torch import Tensor

import graphopt
from graphopt.backends import tvm
from graphopt.compiler.recipes import clean
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import Target, find

EMULATOR = ("qemu-arm", "-cpu", "max")
COMPILER = ("arm-linux-gnueabihf-gcc", "-static")
CALIBRATION = 512
COMPARED = 4  # images on which the program must answer what is expected of it


def flash(folder: Path) -> int:
    """Bytes of code and constants in the objects, those of `model.c` among them."""
    compiled = folder / "model.o"
    subprocess.run([COMPILER[0], "-Os", "-mthumb", "-c", folder / "model.c", "-o", compiled], check=True)
    objects = (folder / "model_kernels.o", folder / "model_weights.o", compiled)
    printed = subprocess.run(["llvm-size-16", *objects], capture_output=True, text=True, check=True).stdout
    return sum(int(line.split()[0]) + int(line.split()[1]) for line in printed.splitlines()[1:])


def executed(code: Path, x: Tensor) -> cycles.Executed:
    """By one inference: more by two than by one."""
    image = code.with_name("image")
    torch.cat([x[:1], x[:1]]).numpy().tofile(image)
    once, twice = (cycles.executed(EMULATOR, code, code.with_name("answers"), str(n), image) for n in (1, 2))
    return twice - once


def row(kind: str, graph: Graph, target: Target, expected: Any, x: Tensor, y: Tensor, work: int) -> dict[str, Any]:
    artifact = tvm.lower(graph, target, batch=1)
    facts = artifact.manifest.options["objects"]
    with common.workplace() as place:
        folder = Path(artifact.save(place / "bare"))
        code = program(folder, COMPILER)
        (found,) = answers(code, folder, [x[:COMPARED].numpy()], 1, EMULATOR)
        difference = float((torch.from_numpy(found) - expected(x[:COMPARED])).abs().max())
        counts = executed(code, x)
        taken = counts.cycles(cycles.CORTEX_M7)
        correct = sum(
            int((expected(some).argmax(1) == of).sum()) for some, of in zip(x.split(500), y.split(500), strict=True)
        )
        return {
            "numbers": kind,
            "accuracy, %": 100 * correct / len(x),
            "instructions per MAC": counts.instructions / work,
            "cycles per MAC": taken / work,
            "million cycles": taken / 1e6,
            "kB of flash": flash(folder) / 1e3,
            "kB of workspace": facts["workspace_bytes"] / 1e3,
            "largest difference": difference,
        }  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, images=10_000, target="tvm-cortex-m7")
    if lack := cycles.missing():
        sys.exit(lack)
    torch.set_num_threads(1)
    data, target = common.data(), find(options.target)
    model, calibration = data.resnet8(), data.cifar10_pixels("train10k")[0][:CALIBRATION]
    x, y = (part[: options.images] for part in data.cifar10_pixels("test"))
    rows: common.Rows = []
    with torch.no_grad():
        real = Graph.capture(model, (x[:1],))
        work = cost.macs(real)
        run(clean(target), real)
        common.log("float")
        rows.append(row("float", real, target, model, x, y, work))
        common.log("int8")
        integer = graphopt.optimize(model, x[:1], target=target, calibration=calibration, measure=False).graph
        rows.append(row("int8", integer, target, graphopt.simulate(integer, target), x, y, work))
    common.finish({f"ResNet-8, {target.name}, one image": rows}, options.json)


if __name__ == "__main__":
    main()
