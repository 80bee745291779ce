"""Networks with slopes below zero, and of one dimension: integer in both runtimes beside float, one input, one thread.

    python benchmarks/slopes.py [--rounds 100]

Float is `torch.onnx.export(..., dynamo=True)` with its defaults in ONNX Runtime, the reference its `quantize_static`; ours are
the artifacts for x86 in ONNX Runtime and in TVM. All run in turn. Wanted: at least twice as fast as float in both.

    face        inverted residuals with PReLU, the shape of MobileFaceNet (Chen et al. 2018), 3x112x112
    pixels      fully convolutional with PReLU, the shape of FSRCNN's layers (Dong et al. 2016), 1x64x64
    leaky       3x3 and 1x1 convolutions with LeakyReLU, the shape of Darknet's (Redmon and Farhadi 2018), 3x128x128
    audio       convolutions of one dimension, padded by calls of their own, batch norms behind activations, 40x400
"""

from __future__ import annotations

import itertools
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost


def conv(
    inputs: int, outputs: int, size: int, activation: nn.Module, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation)


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.body = nn.Sequential(
            conv(inputs, inner, 1, nn.PReLU(inner)), conv(inner, inner, 3, nn.PReLU(inner), stride, inner),
            conv(inner, outputs, 1, nn.Identity()),
        )  # fmt: skip
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return x + found if self.adds else found


def face() -> nn.Module:
    rows = [
        (64, 64, 2, 2),
        *[(64, 64, 2, 1)] * 4,
        (64, 128, 4, 2),
        *[(128, 128, 2, 1)] * 6,
        (128, 128, 4, 2),
        *[(128, 128, 2, 1)] * 2,
    ]
    stem = [conv(3, 64, 3, nn.PReLU(64), 2), conv(64, 64, 3, nn.PReLU(64), groups=64)]
    last = [conv(128, 512, 1, nn.PReLU(512)), nn.Conv2d(512, 512, 7, groups=512), nn.Flatten(), nn.Linear(512, 128)]
    return nn.Sequential(*stem, *(Inverted(*row) for row in rows), *last)


def pixels() -> nn.Module:
    middle = [layer for _ in range(4) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12))]
    return nn.Sequential(
        nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12), *middle, nn.Conv2d(12, 56, 1),
        nn.PReLU(56), nn.Conv2d(56, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip


def leaky() -> nn.Module:
    layers = [conv(3, 32, 3, nn.LeakyReLU(0.1))]
    for width in (32, 64, 128):
        layers += [conv(width, 2 * width, 3, nn.LeakyReLU(0.1), 2), conv(2 * width, width, 1, nn.LeakyReLU(0.1)),
                   conv(width, 2 * width, 3, nn.LeakyReLU(0.1))]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [40, 64, 64, 128, 128]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 5) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.head = nn.Linear(128, 12)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(F.pad(x, (2, 2))).relu())
        found: Tensor = self.head(x.mean(2))
        return found


NETWORKS = {
    "face, PReLU": (face, (3, 112, 112)), "fully convolutional, PReLU": (pixels, (1, 64, 64)),
    "LeakyReLU": (leaky, (3, 128, 128)), "audio, one dimension": (Audio, (40, 400)),
}  # fmt: skip


def row(name: str, folder: Path, rounds: int) -> dict[str, object]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = common.randomise(make())
    batches = [torch.randn(1, *shape) for _ in range(16)]
    example, feed = batches[0], batches[0].numpy()
    original = common.export_float(model, example, folder / "float.onnx")
    reference = common.quantize_static(original, folder / "static.onnx", iter(batches))
    ours, compiled = (
        graphopt.optimize(model, example, target=target, calibration=batches, measure=False)
        for target in ("x86", "tvm-x86")
    )
    calls = {
        "float": common.runner(original, feed), "ours": common.runner(ours.artifact.folder / MODEL, feed),
        "TVM": lambda: compiled.artifact(example), "reference": common.runner(reference, feed),
    }  # fmt: skip
    taken = cost.timings(calls, repeats=rounds, warmup=20, budget_seconds=15)
    return {
        "network": name, "input": "x".join(map(str, shape)), "float ms": taken.median("float"),
        "ours, ONNX Runtime": taken.speedup("float", "ours"), "ours, TVM": taken.speedup("float", "TVM"),
        "`quantize_static`": taken.speedup("float", "reference"), "SQNR dB": ours.report.sqnr_db,
        "float operators": common.joined(common.float_operators(ours.artifact.folder / MODEL)),
    }  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, networks=list(NETWORKS), rounds=100)
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        with common.workplace() as folder:
            rows.append(row(name, folder, options.rounds))
    common.finish({"Times faster than float": rows}, options.json)


if __name__ == "__main__":
    main()
