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
from graphopt.passes.prune.penalties import GroupLasso, slimming
from graphopt.passes.prune.prune import Prune
from graphopt.passes.prune.remove_blocks import RemoveBlocks
from graphopt.passes.prune.saliency import Activation, Fisher, Taylor

__all__ = [
    "Activation",
    "Fisher",
    "GroupLasso",
    "Lasso",
    "Prune",
    "Random",
    "Reconstruction",
    "RemoveBlocks",
    "Taylor",
    "ThiNet",
    "batch_norm_scale",
    "geometric_median",
    "l1_norm",
    "l2_norm",
    "per_unit",
    "similarity",
    "slimming",
]
