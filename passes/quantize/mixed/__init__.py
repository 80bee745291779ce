"""Mixed precision: the bits of every layer, chosen under a budget."""

from graphopt.passes.quantize.mixed.mixed_precision import MixedPrecision
from graphopt.passes.quantize.mixed.plan import MixedPlan

__all__ = ["MixedPlan", "MixedPrecision"]
