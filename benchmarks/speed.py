"""How much faster the integer artifact is than the float original in ONNX Runtime: published networks, 224x224, one thread.

The float original is what `torch.onnx.export(..., dynamo=True)` writes with its defaults. Weights are random: they do not
change the time. Float original, our artifact and ONNX Runtime's own `quantize_static` run in turn; a ratio is the median of
the ratios within a round. `arm` on x86 shows what the other target's format costs here; it says nothing about ARM.

Targets: ResNet-18 at least 3.4 times, MobileNetV2 at least 2.0 times; every multiply-accumulate of convolutions and linear
layers in integer; no residual addition in float.
"""

from __future__ import annotations

from pathlib import Path

import common
import torch
import zoo

import graphopt
from graphopt.backends.onnxruntime import audit
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost

WANTED = {"resnet18": 3.4, "mobilenet_v2": 2.0}
MODELS = ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"]


def rows(name: str, folder: Path, rounds: int) -> common.Rows:
    model, (example,), _ = zoo.make(f"torchvision/{name}")
    common.randomise(model)
    batches = list(common.images(16))
    feed = example.numpy()
    original = common.export_float(model, example, folder / f"{name}.onnx")
    reference = common.quantize_static(original, folder / f"{name}.static.onnx", (b[:1] for b in batches))
    ours = {
        t: graphopt.optimize(model, example, target=t, calibration=batches, measure=False).artifact
        for t in ("x86", "arm")
    }
    calls = {"float": common.runner(original, feed), "quantize_static": common.runner(reference, feed)}
    calls |= {t: common.runner(artifact.folder / MODEL, feed) for t, artifact in ours.items()}
    taken = cost.timings(calls, repeats=rounds, budget_seconds=60)
    found: common.Rows = []
    for way in ("x86", "arm", "quantize_static"):
        row = {
            "model": name,
            "int8": way,
            "float ms": taken.median("float"),
            "int8 ms": taken.median(way),
            "times faster": taken.speedup("float", way),
            "wanted": WANTED.get(name) if way == "x86" else None,
        }
        if way in ours:
            seen = audit(ours[way])
            adds = [f.operator for f in seen.floating].count("Add")
            row |= {"integer MACs %": 100 * seen.share, "float adds": adds}
            row["float operators"] = common.joined(common.float_operators(ours[way].folder / MODEL))
        else:
            row["float operators"] = common.joined(common.float_operators(reference))
        found.append(row)
    return found


def main() -> None:
    options = common.arguments(__doc__, models=MODELS, rounds=40)
    torch.set_num_threads(1)
    found: common.Rows = []
    with common.workplace() as folder:
        for name in options.models:
            common.log(name)
            found += rows(name, folder, options.rounds)
    common.finish({"Speed: one image of 224x224, one thread, ONNX Runtime": found}, options.json)


if __name__ == "__main__":
    main()
