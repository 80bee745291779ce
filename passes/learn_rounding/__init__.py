"""Learned rounding: the codes of weights chosen on data instead of each weight's nearest."""

from graphopt.passes.learn_rounding.learn_rounding import LearnRounding

__all__ = ["LearnRounding"]
