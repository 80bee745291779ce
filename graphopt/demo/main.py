"""Run the demo: `graphopt demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.artifacts.report import Report
from graphopt.demo.train import Digits, load, train


def accuracy(digits: Digits) -> Callable[[Callable[[Tensor], Any]], float]:
    """A function that tells the share of held-out digits a model gets right, 0 to 1."""

    def evaluate(model: Callable[[Tensor], Any]) -> float:
        with torch.no_grad():
            batches = zip(torch.split(digits.test_images, 64), torch.split(digits.test_labels, 64), strict=True)
            right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
        return float(torch.cat(right).mean())

    return evaluate


def run(target: str = "host", out: str | Path | None = None) -> Report:
    """Train, optimize, and return the report; `out` is a folder to save the artifact to."""
    import graphopt

    digits = load()
    model = train(digits)
    optimized = graphopt.optimize(
        model,
        digits.train_images[:1],
        target=target,
        calibration=digits.train_images,
        evaluate=accuracy(digits),
        runtime="onnxruntime" if target == "host" else None,  # which is always installed, and compiles nothing
    )
    if out is not None:
        optimized.artifact.save(out)
    return optimized.report
