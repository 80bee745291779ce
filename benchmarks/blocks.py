"""Building blocks that runtimes like to leave partly in float: integer against float, one image, one thread.

Float is `torch.onnx.export(..., dynamo=True)` with its defaults; ours is the x86 artifact; the reference is ONNX Runtime's own
`quantize_static` on the same float model. All run in turn. Wanted: at least twice as fast as float.
"""

from __future__ import annotations

from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost

WANTED = 2.0


class SqueezeExcite(nn.Module):
    """x * gate(W2 relu(W1 mean(x))) with 1x1 convolutions, or with linear layers."""

    def __init__(self, channels: int, reduced: int, gate: nn.Module, linear: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(channels, reduced) if linear else nn.Conv2d(channels, reduced, 1)
        self.up = nn.Linear(reduced, channels) if linear else nn.Conv2d(reduced, channels, 1)
        self.gate, self.linear = gate, linear

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        if self.linear:
            gate = self.gate(self.up(F.relu(self.down(pooled.flatten(1)))))
            return x * gate[:, :, None, None]
        return x * self.gate(self.up(F.relu(self.down(pooled))))


def conv(cin: int, cout: int, kernel: int, activation: nn.Module | None = None, groups: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([activation] if activation else []))


class Residual(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Branches(nn.Module):
    """Branches side by side, joined along the channels, and mixed by a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left, self.right = conv(channels, half, 1, nn.ReLU()), conv(channels, half, 3, nn.ReLU())
        self.mix = conv(channels, channels, 1, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.left(x), self.right(x)], 1))


def inverted(channels: int, inner: int) -> nn.Module:
    return Residual(
        conv(channels, inner, 1, nn.Hardswish()),
        conv(inner, inner, 3, nn.Hardswish(), groups=inner),
        SqueezeExcite(inner, inner // 4, nn.Hardsigmoid()),
        conv(inner, channels, 1),
    )


def blocks() -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """Block, and its channels and image size."""
    return {
        "conv, SE": (
            nn.Sequential(conv(64, 64, 3, nn.ReLU()), SqueezeExcite(64, 16, nn.Sigmoid()), conv(64, 64, 3)),
            (64, 28),
        ),
        "SE alone": (SqueezeExcite(64, 16, nn.Sigmoid()), (64, 28)),
        "SE with linear layers": (
            nn.Sequential(
                conv(64, 64, 3, nn.ReLU()), SqueezeExcite(64, 16, nn.Sigmoid(), linear=True), conv(64, 64, 3)
            ),
            (64, 28),
        ),
        "hard-swish inverted residual 80-480": (inverted(80, 480), (80, 14)),
        "hard-swish inverted residual 64-256": (inverted(64, 256), (64, 28)),
        "conv, SiLU, add": (Residual(conv(64, 64, 3, nn.SiLU()), conv(64, 64, 3, nn.SiLU())), (64, 28)),
        "concat": (Branches(64), (64, 28)),
        "conv, ReLU, add": (nn.Sequential(Residual(conv(64, 64, 3, nn.ReLU()), conv(64, 64, 3)), nn.ReLU()), (64, 28)),
    }


def row(name: str, model: nn.Module, channels: int, size: int, folder: Path, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    common.randomise(model)
    batches = list(common.images(32, size, channels))
    example = batches[0][:1]
    original = common.export_float(model, example, folder / "float.onnx")
    reference = common.quantize_static(original, folder / "static.onnx", (b[:1] for b in batches))
    ours = graphopt.optimize(model, example, target="x86", calibration=batches, measure=False).artifact
    feed = example.numpy()
    paths = {"float": original, "ours": ours.folder / MODEL, "reference": reference}
    taken = cost.timings(
        {k: common.runner(p, feed) for k, p in paths.items()}, repeats=rounds, warmup=20, budget_seconds=15
    )
    truth = common.answers(original, torch.cat(batches)[:16])
    fidelity = {k: cost.sqnr(truth, common.answers(paths[k], torch.cat(batches)[:16])) for k in ("ours", "reference")}
    return {
        "block": name,
        "input": f"{channels}x{size}x{size}",
        "float ms": taken.median("float"),
        "ours ms": taken.median("ours"),
        "times faster": taken.speedup("float", "ours"),
        "SQNR dB": fidelity["ours"],
        "float operators": common.joined(common.float_operators(paths["ours"])),
        "reference times faster": taken.speedup("float", "reference"),
        "reference SQNR dB": fidelity["reference"],
        "reference float operators": common.joined(common.float_operators(reference)),
    }


def main() -> None:
    options = common.arguments(__doc__, rounds=300, only="")
    torch.set_num_threads(1)
    found: common.Rows = []
    for name, (model, (channels, size)) in blocks().items():
        if options.only in name:
            common.log(name)
            with common.workplace() as folder:
                found.append(row(name, model, channels, size, folder, options.rounds))
    common.finish({f"Blocks, one image, one thread; wanted {WANTED}": found}, options.json)


if __name__ == "__main__":
    main()
