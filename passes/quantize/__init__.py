"""Quantization: placement by the target's integer kernels, range estimation, the bits of every layer, and the simulated form."""

from graphopt.passes.quantize.mixed import MixedPlan, MixedPrecision
from graphopt.passes.quantize.placement import LayerFormat
from graphopt.passes.quantize.quantize import Quantize

__all__ = ["LayerFormat", "MixedPlan", "MixedPrecision", "Quantize"]
