"""One grid for a value and its hard-sigmoid gate, so that hard-swish costs one integer product and no rounding of the gate.

    hard_swish(x) = x * clamp(x + 3, 0, 6) / 6

Below -3 hard-swish is zero, so the grid of x may end there. With its lowest code standing for exactly -3, the codes of x
read with scale s / 6 from that end upwards *are* (x + 3) / 6: the gate needs no arithmetic, only a clip of its codes at 1.

    s' = 3 / floor(3 / s)       the least coarsening that makes -3 a whole number of steps below zero
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import Format
from graphopt.ir.binary import Binary
from graphopt.ir.ops import family


def gate_of(value: Node) -> Node | None:
    """The hard-sigmoid of `value`, if hard-swish is all that reads it."""
    gates = [user for user in value.users if family(user) == "hard_sigmoid"]
    products = [user for user in value.users if family(user) == "mul"]
    if len(gates) != 1 or len(products) != 1 or len(value.users) != 2:
        return None
    product = Binary.of(products[0])
    beside = product.other(value) if product is not None else None
    return gates[0] if beside is gates[0] and len(gates[0].users) == 1 else None


def shared_grid(high: float, format: Format) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Scale and zero point of a value that reaches `high`, and of its gate; None where the format does not allow it."""
    if format.symmetric or format.power_of_two:
        return None
    codes = format.quant_max - format.quant_min
    below = math.floor(3 * codes / (max(high, 0.0) + 3))
    if below < codes / 16:
        return None  # the value reaches so far that too few codes are left around zero
    scale, first = torch.tensor(3 / below, dtype=torch.float32), format.quant_min
    value = (scale, torch.tensor(first + below, dtype=torch.int32))
    return value, (scale / 6, torch.tensor(first, dtype=torch.int32))
