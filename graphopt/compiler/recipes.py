"""Recipes: the passes that make a float graph fit a target, as plain lists that users can cut and join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from graphopt.compiler.options import Rounding
from graphopt.formats import FloatFormat, Format, NumberFormat
from graphopt.ir.passes import Pass
from graphopt.passes.cleanup.decompose_activations import DecomposeActivations
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.fold_input_normalization import FoldInputNormalization
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization.absorb_bias import AbsorbHighBias
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import LayerFormat, MixedPrecision, Quantize
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.passes.rounding import LearnRounding, MinimizeBits
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.targets import Target
from graphopt.utils.errors import InputError

FEW_BITS = 7  # weights with fewer are rounded on data


def clean(target: Target) -> list[Pass]:
    """Exact rewrites: what computes nothing, batch norm, and the normalization of pixels are gone."""
    return [Simplify(), FoldBatchNorm(depthwise=target.kernels.depthwise_norm), FoldInputNormalization()]


def equalize(*, clips: bool = True) -> list[Pass]:
    """Make one scale per tensor fit every channel; pointless where each channel has a scale of its own."""
    return [FoldConstantChannels(), EqualizeChannels(clips=clips), AbsorbHighBias()]


def prepare(target: Target) -> list[Pass]:
    """Everything before `integer`: a float network that suits the target."""
    one_scale = isinstance(target.formats.weights, Format) and not target.formats.weights.per_channel
    return clean(target) + (equalize(clips=not target.runtime.vendor_compiler) if one_scale else [])


def integer(
    target: Target,
    calibration: Iterable[list[Tensor]],
    rounding: Rounding | None = None,
    formats: Mapping[str, LayerFormat | None] | None = None,
    *,
    estimator: str = "mse",
    average_bits: float | None = None,
    checkpoint: str | Path | None = None,
    quantized: bool = False,
    coded: bool = False,
) -> list[Pass]:
    """Quantize for the integer kernels of the target, and make up for what rounding the weights does.

    Args:
        rounding: `nearest`, with the mean error of the weights taken out of the biases; `gptq` and `adaround` choose codes on
            data. None: `nearest` for weights of 7 bits and more, `gptq` for fewer.
        quantized: the graph is already; its ranges, codes and biases stay, which may have been trained, but for codes that a
            `rounding` is given for that chooses them on data.
        average_bits: of the weights, chosen layer by layer; of `formats` only the bits of weights count then.
        checkpoint: see `LearnRounding`.
        coded: files are entropy-coded: where codes would be the nearest by default, they are as good ones of fewer bits.
    """
    formats = formats or {}
    quantize: Pass = Quantize(target, calibration, estimator=estimator, formats=formats)
    if average_bits is not None:
        pinned = weight_bits(target.formats.weights, formats)
        quantize = MixedPrecision(target, calibration, average_bits, estimator=estimator, layers=pinned)
    passes: list[Pass] = [DecomposeActivations(target.kernels.decompose), quantize]
    if quantized and rounding in (None, "nearest"):
        return passes
    if isinstance(target.formats.weights, FloatFormat) and rounding in (None, "nearest"):
        return passes  # errors of single numbers have no mean worth taking out
    if getattr(calibration, "one_shot", False):  # everything else goes through the data once more
        if rounding not in (None, "nearest"):
            raise InputError(f"rounding={rounding!r} goes through the data several times; give a list or a DataLoader")
        return passes
    if rounding is None:
        fewest = average_bits or fewest_bits(target.formats.weights, formats)
        if coded and fewest >= FEW_BITS and isinstance(target.formats.weights, Format):
            return [*passes, MinimizeBits(calibration)]
        rounding = "gptq" if fewest < FEW_BITS else "nearest"
    if rounding == "nearest":
        return [*passes, CorrectBias(calibration)]
    return [*passes, LearnRounding(calibration, method=rounding, checkpoint=checkpoint)]


def fewest_bits(own: NumberFormat, formats: Mapping[str, LayerFormat | None]) -> int:
    """Of any layer's weights, those counted whose codes can be chosen. `own`: the format where `formats` says nothing."""
    chosen = [own, *(layer.weights for layer in formats.values() if layer and layer.weights)]
    return min((format.bits for format in chosen if isinstance(format, Format)), default=FEW_BITS)


def weight_bits(own: NumberFormat, formats: Mapping[str, LayerFormat | None]) -> dict[str, int | None]:
    """What formats say about bits of weights; None: float. `own`: the format where a layer's says nothing.

    Raises:
        InputError: a format that is not uniform, which says more than its bits.
    """
    for name, layer in formats.items():
        if layer and layer.weights and not isinstance(layer.weights, Format):
            raise InputError(
                f"average_bits and weight_only choose bits of uniform formats, but {name!r} is to have {layer.weights}; leave "
                "one of them out"
            )
    return {name: None if f is None else (f.weights or own).bits for name, f in formats.items()}


def weight_only(
    target: Target,
    bits: int = 4,
    block: int = 32,
    data: Iterable[list[Tensor]] | None = None,
    *,
    layers: Mapping[str, int | None] | None = None,
    checkpoint: str | Path | None = None,
) -> list[Pass]:
    """Weights of linear layers in blocks of few bits, activations in float; with `data`, codes chosen on it (GPTQ)."""
    passes = [*clean(target), QuantizeWeights(bits, block, layers=layers or {})]
    return passes if data is None else [*passes, LearnRounding(data, checkpoint=checkpoint)]


def timed(
    target: Target, data: Iterable[list[Tensor]], formats: Mapping[str, LayerFormat | None] | None = None
) -> list[Pass]:
    """As `recipe` deploys it, for measuring time: with the ranges of any data, and without what only makes answers better."""
    return [
        *prepare(target),
        DecomposeActivations(target.kernels.decompose),
        Quantize(target, data, estimator="minmax", formats=formats or {}),
    ]


def recipe(
    target: Target,
    calibration: Iterable[list[Tensor]],
    *,
    estimator: str = "mse",
    formats: Mapping[str, LayerFormat | None] | None = None,
    rounding: Rounding | None = None,
) -> list[Pass]:
    """What `graphopt.optimize` does when it is given no passes and nothing is to be shrunk."""
    return prepare(target) + integer(target, calibration, rounding, formats, estimator=estimator)
