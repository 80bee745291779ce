"""Structured pruning: criteria, allocation, removal, compensation."""

from graphopt.passes.pruning.criteria import (
    Random,
    batch_norm_scale,
    geometric_median,
    l1_norm,
    l2_norm,
    per_unit,
    similarity,
)
from graphopt.passes.pruning.greedy import Lasso, Reconstruction, ThiNet
from graphopt.passes.pruning.penalties import GroupLasso, slimming
from graphopt.passes.pruning.prune import Prune
from graphopt.passes.pruning.remove_blocks import RemoveBlocks
from graphopt.passes.pruning.saliency import Activation, Fisher, Taylor

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
