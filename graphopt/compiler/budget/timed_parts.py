"""Times of parts at all widths, from those at which they are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod

from torch import Tensor

from graphopt.compiler.budget.widths import Widths
from graphopt.evaluation.kernel_costs import BORDER, LEAST_NS
from graphopt.evaluation.parts import Part
from graphopt.evaluation.resized import Alone, Resizing
from graphopt.ir.shapes import counted
from graphopt.searching import Assignment

GRID = {0: 1, 1: 5, 2: 5, 3: 3}  # by the groups of a part, widths of each at which it is timed; others are interpolated


class TimedPart:
    """One part: the widths at which it is timed, and its time at others."""

    def __init__(self, part: Part, resizing: Resizing, widths: Widths) -> None:
        self.part, self.widths = part, widths
        self.groups = resizing.groups_of(part)
        levels = GRID.get(len(self.groups), 2)
        self.options = [_spread(len(widths.choices[g].options), levels) for g in self.groups]
        self.grid: dict[Assignment, Alone | None] = {
            at: resizing(part, widths.kept(dict(zip(self.groups, at, strict=True)))) for at in product(*self.options)
        }
        self.measured: dict[Assignment, float] = {}
        self.in_float: dict[Assignment, float] = {}

    @property
    def alone(self) -> list[Alone]:
        """What is to be timed."""
        return [alone for alone in self.grid.values() if alone is not None]

    def at(self, known: Mapping[str, float]) -> dict[Assignment, float]:
        """Of times by the key of `Alone`, those of this part by its widths."""
        return {at: known[alone.key] for at, alone in self.grid.items() if alone is not None and alone.key in known}

    def milliseconds(self, options: Assignment) -> float:
        """In integer; nothing for parts that cannot be timed by themselves."""
        return self._between(self.measured, options)

    def in_float_times(self, options: Assignment) -> float:
        """How many times that in float, with conversions of what it reads and gives."""
        integer = self.milliseconds(options)
        return (self._between(self.in_float, options) + self.border_ms) / integer if integer else 1.0

    def _between(self, known: Mapping[Assignment, float], options: Assignment) -> float:
        """Between the widths that were timed, linear in each."""
        if len(known) < len(self.grid):
            return 0.0
        dims = zip(self.options, options, self.groups, strict=True)
        around = [_around(grid, option, self._width(group)) for grid, option, group in dims]
        total = 0.0
        for corner in product(*around):
            total += prod(weight for _, weight in corner) * known[tuple(option for option, _ in corner)]
        return total

    @property
    def border_ms(self) -> float:
        """About what conversions to float and back take."""
        nodes = {source for node in self.part.nodes for source in node.all_input_nodes} | {self.part.nodes[-1]}
        values = [
            node.meta["val"] for node in nodes if node.op != "get_attr" and isinstance(node.meta.get("val"), Tensor)
        ]
        return sum(prod(counted(size) for size in value.shape) for value in values) * LEAST_NS * BORDER * 1e-6

    def _width(self, group: int) -> Callable[[int], float]:
        return lambda option: float(self.widths.choices[group].options[option].value)


def _spread(count: int, levels: int) -> list[int]:
    """Up to so many options, the first and the last among them."""
    if count <= levels:
        return list(range(count))
    return sorted({round(i * (count - 1) / (levels - 1)) for i in range(levels)})


def _around(grid: Sequence[int], option: int, width: Callable[[int], float]) -> list[tuple[int, float]]:
    """The timed options next to one, with their shares."""
    if option in grid:
        return [(option, 1.0)]
    below = max(o for o in grid if o < option)
    above = min(o for o in grid if o > option)
    share = (width(option) - width(below)) / (width(above) - width(below))
    return [(below, 1 - share), (above, share)]
