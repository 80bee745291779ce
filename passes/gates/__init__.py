"""Gates: parts of a network that run, or do not, as each sample needs.

add_gates.py     `AddGates`: gates at residual blocks, or at the channels inside of them, with heads that decide
blocks.py        residual blocks that can be passed by
heads.py         what decides
remove_gates.py  `RemoveGates`: those that always, or never, open become plain
"""

from graphopt.passes.gates.add_gates import AddGates
from graphopt.passes.gates.remove_gates import RemoveGates

__all__ = ["AddGates", "RemoveGates"]
