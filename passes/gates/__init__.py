"""Gates: parts of a network that run, or do not, as each sample needs.

add_gates.py     `AddGates`: gates at residual blocks, or at the channels inside of them, with heads that decide
add_halting.py   `AddHalting`: stages that stop where a sample, or a position, has had enough of their blocks
selecting.py     blocks that a sample takes or goes past
remove_gates.py  `RemoveGates`: those that always, or never, open become plain
"""

from graphopt.passes.gates.add_gates import AddGates
from graphopt.passes.gates.add_halting import AddHalting
from graphopt.passes.gates.remove_gates import RemoveGates

__all__ = ["AddGates", "AddHalting", "RemoveGates"]
