"""Channels brought to ranges that one scale fits, without changing what the graph computes."""

from graphopt.passes.equalization.absorb_bias import AbsorbHighBias
from graphopt.passes.equalization.equalize_channels import EqualizeChannels

__all__ = ["AbsorbHighBias", "EqualizeChannels"]
