"""Quantization: placement by the target's integer kernels, range estimation, the bits of every layer, and the simulated form."""

from graphopt.passes.quantization.mixed import MixedPlan, MixedPrecision
from graphopt.passes.quantization.placement import LayerFormat
from graphopt.passes.quantization.quantize import Quantize
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.passes.quantization.refine_ranges import RefineRanges

__all__ = ["LayerFormat", "MixedPlan", "MixedPrecision", "Quantize", "QuantizeWeights", "RefineRanges"]
