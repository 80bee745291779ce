"""What tests of `optimize` share: images and a quick call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from blocks import images, model_of
from torch import Tensor, nn

from graphopt.compiler.optimize import Optimized, optimize

DATA = [images(8, seed=s) for s in range(2)]


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    """Agreement with the float network on images it was not calibrated on."""
    x = images(32, seed=9)
    return float((model(x).argmax(1) == model_of("residual")(x).argmax(1)).double().mean())


@cache
def result() -> tuple[Optimized, int, dict[str, Tensor], nn.Module]:
    """One run shared by the tests of what it returns."""
    model, calls = model_of("residual"), []
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def evaluate(answer: Callable[[Tensor], Tensor]) -> float:
        calls.append(answer)
        return accuracy(answer)

    done = optimize(model, images(2), target="host", runtime="onnxruntime", calibration=DATA, evaluate=evaluate)
    return done, len(calls), before, model


def quick(model: nn.Module, *args: Any, **options: Any) -> Optimized:
    return optimize(
        model, *(args or (images(2),)), **{"target": "host", "measure": False, "calibration": DATA, **options}
    )
