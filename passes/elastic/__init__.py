"""Passes that make a network elastic: what it could do without becomes a choice that is live in the graph.

elastic.py   `Elastic`: which choices
widths.py    channels of every group, the most important first
depths.py    residual blocks, there or not
kernels.py   smaller kernels inside those of convolutions
"""

from graphopt.passes.elastic.elastic import Elastic

__all__ = ["Elastic"]
