"""How a network's time falls with threads and batches: each way in a process of its own, one after another.

    python benchmarks/threads.py [--models resnet18 mobilenet_v2] [--threads 1 2] [--batches 1 8] [--calls 60]

Waits of one runtime's threads take the cores from another's, so that nothing can be timed in turn in one process here: run it on
a machine that does nothing else. Milliseconds are medians for a whole batch; `speedup` is one thread's time over this one's.
Networks and files are those of `speed.py`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
import zoo

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.targets import host

WAYS = {"float, ONNX Runtime": "", "ours, ONNX Runtime": "onnxruntime", "ours, TVM": "tvm"}


def measured(name: str, way: str, batch: int, threads: int, calls: int, folder: Path) -> float:
    """Milliseconds of a call."""
    torch.set_num_threads(1)
    model, (example,), _ = zoo.make(f"torchvision/{name}")
    common.randomise(model)
    x = example[:1].expand(batch, *example.shape[1:]).contiguous()
    if not WAYS[way]:
        call = common.runner(common.export_float(model, x, folder / "float.onnx"), x.numpy(), threads)
    else:
        how: dict[str, Any] = {"estimator": "minmax", "measure": False, "dynamic_batch": False}
        target = host(WAYS[way])
        artifact = graphopt.optimize(model, x, target=target, calibration=list(common.images(4)), **how).artifact
        artifact.set_threads(threads)
        call = (
            (lambda: artifact(x)) if WAYS[way] == "tvm" else common.runner(artifact.folder / MODEL, x.numpy(), threads)
        )
    taken = []
    for number in range(5 + max(8, calls // batch)):
        start = time.perf_counter()
        call()
        if number >= 5:
            taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def apart(*what: Any) -> float:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(what)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, way, batch, threads, calls = json.loads(sys.argv[2])
        with common.workplace() as folder:
            print(measured(name, way, batch, threads, calls, folder))
        return
    options = common.arguments(__doc__, models=["resnet18", "mobilenet_v2"], threads=[1, 2], batches=[1, 8], calls=60)
    rows = []
    for name in options.models:
        for batch in map(int, options.batches):
            for way in WAYS:
                ms = {n: apart(name, way, batch, n, options.calls) for n in map(int, options.threads)}
                first = ms[int(options.threads[0])]
                row = {"model": name, "batch": batch, "by": way}
                row |= {f"{n} threads, ms" if n > 1 else "1 thread, ms": taken for n, taken in ms.items()}
                row |= {f"speedup of {n}": first / taken for n, taken in ms.items() if n > 1}
                rows.append(row)
                common.log(str(row))
    common.finish({"Threads and batches": rows}, options.json)


if __name__ == "__main__":
    main()
