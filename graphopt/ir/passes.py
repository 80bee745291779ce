"""What a pass is: a frozen dataclass whose fields are its options.

Called with a graph it edits the graph in place and returns what it changed; an empty list means nothing matched. A site that
does not qualify is skipped; a graph that does not qualify raises and says what to do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

from graphopt.ir.graph import Graph


class Change(NamedTuple):
    """One edit: where (a layer's name) and what, in a few words."""

    site: str
    what: str


class Shortfall(Change):
    """A change that is less than what was asked for, because that is out of reach; reports warn of it."""

    __slots__ = ()


Call = TypeVar("Call", bound=Callable[..., list[Change]])


def in_eval_mode(call: Call) -> Call:
    """For the `__call__` of a pass that measures: batch norm uses its statistics, dropout is off.

    The graph is handed back in the mode it came in.
    """

    @functools.wraps(call)
    def evaluated(self: Any, graph: Graph) -> list[Change]:
        with graph.evaluating():
            return call(self, graph)

    return cast(Call, evaluated)


class Timer(Protocol):
    """Measures graphs on the runtime they are meant for: milliseconds of one call on each one's example, taken in turn."""

    def __call__(self, graphs: Sequence[Graph]) -> list[float]: ...


class Pass(Protocol):
    """Rewrites a graph in place. `exact`: outputs stay the same up to float rounding."""

    exact: ClassVar[bool]

    def __call__(self, graph: Graph) -> list[Change]: ...
