"""Experts: of a layer's neurons those that a token needs.

make_experts.py  `MakeExperts`: linear layers with an activation in between, split into experts of which each token takes some
sites.py         where a graph has such layers
clusters.py      neurons in groups of one size, those together that are active together
routers.py       what says which experts a token needs
"""

from graphopt.passes.experts.make_experts import MakeExperts

__all__ = ["MakeExperts"]
