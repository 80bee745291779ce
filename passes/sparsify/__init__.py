"""Sparsity: masks over single weights and over N:M patterns, kept while training and baked in at lowering."""

from graphopt.losses import own_labels, own_outputs
from graphopt.masks import bake, masks, release, zero_share
from graphopt.passes.sparsify.bake_masks import BakeMasks
from graphopt.passes.sparsify.saliency import OptimalBrainDamage, magnitude
from graphopt.passes.sparsify.sparsify import Sparsify

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
