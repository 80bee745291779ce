"""A folder of photos is all it takes: a classifier in int8, and its answer through plain onnxruntime.

    python examples/photos_to_int8.py PHOTOS [OUT]

The photos calibrate the ranges of activations; they need no labels. Without a folder, some are made up.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import graphopt
from graphopt import Preprocessing


def make_photos(folder: Path, count: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def model() -> nn.Module:
    """Stands for yours."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    ).eval()  # fmt: skip


def main(photos: Path, out: Path) -> None:
    result = graphopt.optimize(
        model(),
        torch.zeros(1, 3, 64, 64),
        target="host",
        runtime="onnxruntime",
        calibration=str(photos),
        preprocessing=Preprocessing(72, crop=(64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        class_labels=["cat", "dog", "bird"],
    )
    result.report.print()
    folder = result.artifact.save(out)
    program = folder.parent / "use.py"
    program.write_text(result.artifact.usage(folder))  # no graphopt in it
    photo = next(p for p in sorted(photos.iterdir()) if p.suffix in (".png", ".jpg", ".jpeg"))
    print(subprocess.run([sys.executable, program, photo], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else make_photos(Path(made) / "photos")
        main(given, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(made) / "deployed")
