"""Experts: several of a part, or parts of one, of which each sample or token needs some.

add_experts.py   `AddExperts`: copies of parts, of which a router takes some for each sample (sparsely gated mixtures)
parts.py         what there can be experts of
copies.py        calls copied with weights of their own
cond_conv.py     `CondConv`: convolutions whose kernel is a sum of experts, weighted for each sample
weighted.py      where a graph has such convolutions
mix_kernels.py   `MixKernels`: that sum computed in front of the convolution, for one sample at a time
make_experts.py  `MakeExperts`: linear layers with an activation in between, split into experts of which each token takes some
sites.py         where a graph has such layers
clusters.py      neurons in groups of one size, those together that are active together
routers.py       what says which experts a token needs, fitted on data
"""

from graphopt.passes.experts.add_experts import AddExperts
from graphopt.passes.experts.cond_conv import CondConv
from graphopt.passes.experts.make_experts import MakeExperts
from graphopt.passes.experts.mix_kernels import MixKernels

__all__ = ["AddExperts", "CondConv", "MakeExperts", "MixKernels"]
