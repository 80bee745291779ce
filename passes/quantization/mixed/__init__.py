"""Mixed precision: the bits of every layer, chosen under a budget."""

from graphopt.passes.quantization.mixed.mixed_precision import MixedPrecision
from graphopt.passes.quantization.mixed.plan import MixedPlan

__all__ = ["MixedPlan", "MixedPrecision"]
