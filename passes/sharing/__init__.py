"""Weights of a layer that share a few values, so that a file holds small codes in place of numbers.

share_weights.py   the pass
sites.py           weights that can share values
tables.py          the values
indices.py         which value each weight has, chosen on data
budget.py          how many values each layer has, for a size
"""

from graphopt.passes.sharing.share_weights import ShareWeights

__all__ = ["ShareWeights"]
