"""Passes that keep what a graph computes and make it smaller or plainer."""

from graphopt.passes.cleanup.decompose_activations import DecomposeActivations
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.fold_input_normalization import FoldInputNormalization
from graphopt.passes.cleanup.reestimate_batchnorm import ReestimateBatchNorm
from graphopt.passes.cleanup.simplify import Simplify

__all__ = [
    "DecomposeActivations",
    "FoldBatchNorm",
    "FoldConstantChannels",
    "FoldInputNormalization",
    "ReestimateBatchNorm",
    "Simplify",
]
