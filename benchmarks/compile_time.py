"""Time to compile: `optimize(measure=False)` beside `torch.onnx.export` and ONNX Runtime's `quantize_static`.

Sixteen images of 224x224, one thread, signed weights per channel; ours for x86 with its default recipe. Each run is a process of
its own that has compiled two small layers before, so that imports do not count; the two take turns. CPU seconds: what the
process worked, whoever else is on the machine.

The batch stays free in ours and in "theirs, free batch"; "theirs" exports for a batch of one, as the exporter does unless it is
told otherwise. Wanted: at most the time of export and `quantize_static` together, on each network.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import common
import torch
import zoo
from torch import nn

import graphopt

NETWORKS = [f"torchvision/{name}" for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")]
IMAGES = 16


def ours(model: nn.Module, batches: list[torch.Tensor], folder: Path) -> None:
    graphopt.optimize(model, batches[0], target="x86", calibration=batches, measure=False).artifact.save(
        folder / "ours"
    )


def theirs(model: nn.Module, batches: list[torch.Tensor], folder: Path, *, free: bool = False) -> None:
    source = common.export_float(model, batches[0], folder / "float.onnx", dynamic_batch=free)
    common.quantize_static(source, folder / "integer.onnx", batches)


TOOLS = {"ours": ours, "theirs": theirs, "theirs, free batch": partial(theirs, free=True)}


def seconds(tool: str, network: str) -> dict[str, float]:
    """Of compiling in this process."""
    torch.set_num_threads(1)
    model, _, _ = zoo.make(network)
    common.randomise(model)
    batches = list(common.images(IMAGES, batch=1))
    warm = common.randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    with common.workplace() as folder:
        TOOLS[tool](warm, [torch.randn(1, 3, 16, 16)], folder)
    with common.workplace() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        TOOLS[tool](model, batches, folder)
        return {"CPU": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def apart(tool: str, network: str) -> dict[str, float]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--tool", tool, "--networks", network], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(network: str, rounds: int) -> dict[str, object]:
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    for turn in range(rounds):
        for tool in TOOLS:
            common.log(f"{network}, {tool}, {turn + 1} of {rounds}")
            found[tool].append(apart(tool, network))
    line: dict[str, object] = {"network": network}
    for kind in ("CPU", "wall"):
        middle = {tool: statistics.median(run[kind] for run in runs) for tool, runs in found.items()}
        line |= {f"{tool}, {kind} s": value for tool, value in middle.items()}
        line |= {f"{kind}, ours / {tool}": middle["ours"] / middle[tool] for tool in list(TOOLS)[1:]}
    return line


def main() -> None:
    options = common.arguments(__doc__, networks=NETWORKS, rounds=3, tool="")
    if options.tool:
        print(json.dumps(seconds(options.tool, options.networks[0])))
        return
    rows = [row(name, options.rounds) for name in options.networks]
    common.finish({f"Seconds to compile with {IMAGES} images, one thread": rows}, options.json)


if __name__ == "__main__":
    main()
