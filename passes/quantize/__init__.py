"""Quantization: placement by the target's integer kernels, range estimation, and the simulated form."""

from graphopt.passes.quantize.placement import LayerFormat
from graphopt.passes.quantize.quantize import Quantize

__all__ = ["LayerFormat", "Quantize"]
