"""Memory and time of calibration: MobileNetV2, images of 224x224 made batch by batch, each run in a process of its own.

Peak memory is the process's largest resident set; `start MB` is what it held before any work (imports and model). Every
process is bound to one core; `busy` counts the seconds that core really gave it. The reference is ONNX Runtime's
`quantize_static` with min-max ranges on the same images.

Wanted: our peaks within 100 MB of each other and below 1.5 GB, however many images.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common
import torch
import zoo

BATCH = 8
RUNS = [
    ("ours", "percentile", 64), ("ours", "percentile", 1024), ("ours", "entropy", 64), ("ours", "entropy", 1024),
    ("ours", "mse", 64), ("ours", "minmax", 64), ("quantize_static", "minmax", 64),
]  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(way: str, estimator: str, count: int) -> dict[str, object]:
    """One run, in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model, (example,), _ = zoo.make("torchvision/mobilenet_v2")
    common.randomise(model)
    if way == "ours":
        from graphopt.backends.onnxruntime import lower
        from graphopt.compiler.recipes import recipe
        from graphopt.data.calibration import Calibration
        from graphopt.ir.graph import Graph
        from graphopt.passes.quantization import Quantize
        from graphopt.passmanager.runner import run
        from graphopt.targets import find
    else:
        import onnxruntime.quantization  # noqa: F401
    began, start = peak_mb(), time.perf_counter()
    with common.workplace() as folder:
        if way == "ours":
            graph = Graph.capture(model, example)
            data = Calibration(lambda: common.images(count, batch=BATCH), graph)
            passes = recipe(find("x86"), data, estimator=estimator)
            at = next(i for i, p in enumerate(passes) if isinstance(p, Quantize))
            run(passes[:at], graph)
            busy, quantizing = time.process_time(), time.perf_counter()
            passes[at](graph)
            busy, quantizing = time.process_time() - busy, time.perf_counter() - quantizing
            graph.refresh()
            run(passes[at + 1 :], graph)
            lower(graph, find("x86"))
        else:
            path = common.export_float(model, example, folder / "float.onnx", dynamic_batch=True)
            busy, quantizing = time.process_time(), time.perf_counter()
            common.quantize_static(path, folder / "static.onnx", common.images(count, batch=BATCH))
            busy, quantizing = time.process_time() - busy, time.perf_counter() - quantizing
        total = time.perf_counter() - start
    made = time.perf_counter()
    for _ in common.images(count, batch=BATCH):
        pass
    making = time.perf_counter() - made
    return {
        "way": way, "estimator": estimator, "images": count, "start MB": began, "peak MB": peak_mb(),
        "quantize s": quantizing, "of it busy s": busy, "of it making images s": making, "all s": total,
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        way, estimator, count = sys.argv[2:5]
        print(json.dumps(one(way, estimator, int(count))))
        return
    options = common.arguments(
        __doc__, rounds=1, images=[64, 1024], estimators=["percentile", "entropy", "mse", "minmax"]
    )
    runs = [run for run in RUNS if run[1] in options.estimators and run[2] in options.images]
    taken: dict[tuple[str, str, int], common.Rows] = {run: [] for run in runs}
    for run in runs * options.rounds:  # in turn
        common.log(" ".join(map(str, run)))
        command = [sys.executable, str(Path(__file__).resolve()), "--one", *map(str, run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        taken[run].append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(taken[run][-1], flush=True)
    found = [
        {k: v if isinstance(v, str) else statistics.median(row[k] for row in rows) for k, v in rows[0].items()}
        for rows in taken.values()
    ]
    common.finish({f"Calibration: MobileNetV2, 224x224, batches of {BATCH}, one core": found}, options.json)


if __name__ == "__main__":
    main()
