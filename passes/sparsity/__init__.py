"""Sparsity: masks over single weights and over N:M patterns, kept while training and baked in at lowering."""

from graphopt.fitting.losses import own_labels, own_outputs
from graphopt.ir.masks import bake, masks, release, zero_share
from graphopt.passes.sparsity.bake_masks import BakeMasks
from graphopt.passes.sparsity.saliency import OptimalBrainDamage, magnitude
from graphopt.passes.sparsity.sparsify import Sparsify

__all__ = [
    "BakeMasks",
    "OptimalBrainDamage",
    "Sparsify",
    "bake",
    "magnitude",
    "masks",
    "own_labels",
    "own_outputs",
    "release",
    "zero_share",
]
