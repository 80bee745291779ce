"""What a budget says, such as `{"latency": 0.4}` or `{"ms": 3, "bytes": 200_000}`.

latency     the share of the float original's time in its own runtime (over 0, under 1)
ms          milliseconds of a call
macs        multiply-accumulates; a share of the original's where it is under 1
bytes       of the weights, each in the bits of its codes; a share of the float original's where it is under 1
energy      the share of the float original's energy (over 0, under 1), by the target's table: a model, not a measurement
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphopt.utils.errors import InputError, alternatives

AMOUNTS = ("latency", "ms", "macs", "bytes", "energy")
TIMED = ("latency", "ms")
SIZED = ("bytes",)
ENERGY = "energy"


def check(budget: Mapping[str, float]) -> None:
    """Raises InputError, before any work, where a budget cannot be meant."""
    if not isinstance(budget, Mapping) or not budget:
        raise InputError(f"budget says what may be spent, such as {{'latency': 0.4}}, got {budget!r}")
    for name, amount in budget.items():
        if name not in AMOUNTS:
            raise InputError(f"a budget of {name!r} is unknown; {alternatives(str(name), AMOUNTS, 'amounts')}")
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool) and math.isfinite(amount)
        if not number or amount <= 0:
            raise InputError(f"the budget of {name} must be a number over 0, got {amount!r}")
        if name == ENERGY and amount >= 1:
            raise InputError(f"the budget of energy is the share that is left, under 1, got {amount!r}")
        if name == "latency" and amount >= 1:
            raise InputError(
                f"the budget of latency is the share that is left, under 1, got {amount!r}; for milliseconds give 'ms'"
            )
    if {*TIMED} <= {*budget}:
        raise InputError("give one of 'latency' (a share) and 'ms', not both")


def limit(amount: float, whole: float) -> float:
    """A share of the whole where it is under 1, else as it is."""
    return amount * whole if amount < 1 else amount
