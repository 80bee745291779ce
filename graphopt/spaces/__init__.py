"""Networks with choices made from scratch, and the module that any network can have them by.

choice.py   `Choice`: alternatives of a module; of some of its channels; of edges
cells.py    `darts_cell`: small networks of cells that are chosen edge by edge
mobile.py   `mobile`: inverted residuals of several kernel sizes and expansions
resolution.py  `resolutions`: one network at several sizes of its input
compound.py `compound_scaling`: depth, width and resolution of a family of networks, to a budget
"""

from graphopt.spaces.cells import darts_cell
from graphopt.spaces.choice import Choice, EdgeChoice, PartialChoice, Zero
from graphopt.spaces.compound import compound_scaling
from graphopt.spaces.mobile import mobile
from graphopt.spaces.resolution import resolutions

__all__ = ["Choice", "EdgeChoice", "PartialChoice", "Zero", "compound_scaling", "darts_cell", "mobile", "resolutions"]
