"""Errors of rounding made smaller: codes of weights chosen on data, biases that take out mean errors."""

from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passes.rounding.learn_rounding import LearnRounding
from graphopt.passes.rounding.minimize_bits import MinimizeBits

__all__ = ["CorrectBias", "LearnRounding", "MinimizeBits"]
