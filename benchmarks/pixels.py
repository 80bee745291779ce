"""Bytes of a camera as the input: what it takes beside normalizing them first, one image of 224x224, one thread.

    python benchmarks/pixels.py [--rounds 60]

`normalized`: NumPy normalizes uint8 pixels to float32, [N, C, H, W], and the int8 artifact takes those; `pixels`: the artifact of
`optimize(..., input="uint8")` takes them as they are. Both from the same network and calibration images, in turn. `first` is what
normalizing alone takes. SQNR is against the float network, on 32 images; random weights.
"""

from __future__ import annotations

import common
import torch
import zoo
from torch import Tensor

import graphopt
from graphopt import Preprocessing
from graphopt.ir import cost

NETWORKS = [f"torchvision/{name}" for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_large")]
TARGETS = {"ONNX Runtime": "x86", "TVM": "tvm-x86"}
IMAGES = Preprocessing()


def pixels(count: int) -> Tensor:
    """Smooth noise, as photos are smooth."""
    coarse = torch.rand(count, 3, 28, 28)
    return (torch.nn.functional.interpolate(coarse, size=224, mode="bicubic") * 255).clamp(0, 255).to(torch.uint8)


def normal(x: Tensor) -> Tensor:
    return torch.from_numpy(IMAGES.normalized(x.permute(0, 2, 3, 1).numpy()))


def row(network: str, runtime: str, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    model, _, _ = zoo.make(network)
    common.randomise(model)
    known, other = pixels(16), pixels(32)
    options = {"target": TARGETS[runtime], "measure": False}
    floats = graphopt.optimize(model, normal(known[:1]), calibration=[normal(known)], **options).artifact
    bytes_ = graphopt.optimize(
        model, known[:1], calibration=[known], input="uint8", preprocessing=IMAGES, **options
    ).artifact
    with torch.no_grad():
        expected = model(normal(other))
    one = other[:1]
    calls = {
        "first": lambda: normal(one), "normalized": lambda: floats(normal(one)), "float input": lambda: floats(ready),
        "pixels": lambda: bytes_(one),
    }  # fmt: skip
    ready = normal(one)
    taken = cost.timings(calls, repeats=rounds, warmup=10, budget_seconds=20)
    return {
        "network": network.partition("/")[2], "runtime": runtime, "normalizing alone, ms": taken.median("first"),
        "float input, ms": taken.median("float input"), "normalized first, ms": taken.median("normalized"),
        "pixels, ms": taken.median("pixels"), "times faster": taken.speedup("normalized", "pixels"),
        "SQNR dB, normalized": cost.sqnr([expected], [floats(normal(other))]),
        "SQNR dB, pixels": cost.sqnr([expected], [bytes_(other)]),
    }  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, rounds=60)
    torch.set_num_threads(1)
    rows = [row(network, runtime, options.rounds) for network in NETWORKS for runtime in TARGETS]
    common.finish({"Pixels and normalized images": rows}, options.json)


if __name__ == "__main__":
    main()
