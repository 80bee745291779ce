"""Structured pruning: criteria, allocation, removal, compensation."""

from graphopt.passes.prune.criteria import (
    Random,
    batch_norm_scale,
    geometric_median,
    l1_norm,
    l2_norm,
    per_unit,
    similarity,
)
from graphopt.passes.prune.greedy import Lasso, Reconstruction, ThiNet
from graphopt.passes.prune.prune import Prune
from graphopt.passes.prune.saliency import Activation, Fisher, Taylor

__all__ = [
    "Activation",
    "Fisher",
    "Lasso",
    "Prune",
    "Random",
    "Reconstruction",
    "Taylor",
    "ThiNet",
    "batch_norm_scale",
    "geometric_median",
    "l1_norm",
    "l2_norm",
    "per_unit",
    "similarity",
]
