"""Weights of a layer that share a few values, so that a file holds small codes in place of numbers; layers that share weights.

share_weights.py   `ShareWeights`
tie_layers.py      `TieLayers`
sites.py           weights that can share values
tables.py          the values
product_quantize.py  `ProductQuantize`
vectors.py         vectors that weights are made of
indices.py         which value each weight has, chosen on data
budget.py          how many values each layer has, for a size
"""

from graphopt.passes.sharing.product_quantize import ProductQuantize
from graphopt.passes.sharing.share_weights import ShareWeights
from graphopt.passes.sharing.tie_layers import TieLayers

__all__ = ["ProductQuantize", "ShareWeights", "TieLayers"]
