"""Networks, and heads of them, made to compute as much as an input needs: ordinary modules, to be trained, captured and deployed
like any other.

msdnet.py   `msdnet`: multi-scale dense network with an answer behind each block
heads.py    what decides about gates, halting and experts
"""

from graphopt.networks.msdnet import MSDNet, msdnet

__all__ = ["MSDNet", "msdnet"]
