"""Weights and inputs of layers as signs times a scale: one and two bits.

binarize.py         `Binarize`: signs in place of a layer's weight, and of what it reads
block_shortcuts.py  `BlockShortcuts`: a shortcut around each convolution, activations that keep signs
"""

from graphopt.passes.binary.binarize import Binarize
from graphopt.passes.binary.block_shortcuts import BlockShortcuts

__all__ = ["Binarize", "BlockShortcuts"]
