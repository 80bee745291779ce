"""Recipes: the passes that make a float graph fit a target, as plain lists that users can cut and join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from graphopt.contract import Pass
from graphopt.passes.absorb_bias import AbsorbHighBias
from graphopt.passes.correct_bias import CorrectBias
from graphopt.passes.decompose_activations import DecomposeActivations
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.fold_constant_channels import FoldConstantChannels
from graphopt.passes.prune import Prune
from graphopt.passes.quantize import LayerFormat, Quantize
from graphopt.passes.simplify import Simplify
from graphopt.targets import Target


def clean(target: Target) -> list[Pass]:
    """Exact rewrites: what computes nothing, and batch norm, are gone."""
    return [Simplify(), FoldBatchNorm(depthwise=target.depthwise_norm)]


def equalize() -> list[Pass]:
    """Make one scale per tensor fit every channel; pointless where each channel has a scale of its own."""
    return [FoldConstantChannels(), EqualizeChannels(), AbsorbHighBias()]


def integer(
    target: Target,
    calibration: Iterable[list[Tensor]],
    *,
    estimator: str = "mse",
    formats: Mapping[str, LayerFormat | None] | None = None,
) -> list[Pass]:
    """Quantize for the integer kernels of the target, and take the mean error of the weights out of the biases."""
    passes: list[Pass] = [
        DecomposeActivations(target.decompose),
        Quantize(target, calibration, estimator=estimator, formats=formats or {}),
    ]
    if not getattr(calibration, "one_shot", False):  # the correction goes through the data once more
        passes.append(CorrectBias(calibration))
    return passes


def prune(target: Target, calibration: Iterable[list[Tensor]], keep_ratio: float) -> list[Pass]:
    """Keep this share of the multiply-accumulates, in numbers of channels that the target's kernels like.

    Made-up inputs say nothing about what matters: with those, the weights alone decide.
    """
    data = None if getattr(calibration, "synthetic", False) else calibration
    return [Prune(keep_ratio, data=data, round_to=target.channel_multiple)]


def recipe(
    target: Target,
    calibration: Iterable[list[Tensor]],
    *,
    estimator: str = "mse",
    formats: Mapping[str, LayerFormat | None] | None = None,
    keep_macs: float | None = None,
) -> list[Pass]:
    """What `graphopt.optimize` does when it is given no passes."""
    first = [] if keep_macs is None else prune(target, calibration, keep_macs)
    middle = [] if target.weights.per_channel else equalize()
    return first + clean(target) + middle + integer(target, calibration, estimator=estimator, formats=formats)
