"""A budget to spend: of every choice one option, so that no cost exceeds its limit, at the least damage.

    problem = Problem(choices, costs={"ms": terms}, limits={"ms": 3.0})
    problem.cost("ms", assignment)          assignment: the number of an option for each choice
    problem.damage(assignment)

Damages of options add up. Costs are sums of *terms*, each a function of the options of a few choices: a convolution's time
depends on how many channels it reads and on how many it makes, which are two choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from graphopt.utils.errors import InputError
from graphopt.utils.quantities import few

Assignment = tuple[int, ...]
NAMED = 3  # choices in a message
SLACK = 1e-9  # of a limit: sums of floats


@dataclass(frozen=True)
class Option:
    """One way to have a choice.

    Attributes:
        label: in a few characters, for tables.
        damage: what it does to the output alone: the mean over outputs of sum |z' - z|^2 / sum |z|^2.
        value: what applies it; the maker of the choice knows what that is.
    """

    label: str
    damage: float
    value: Any = None


@dataclass(frozen=True)
class Choice:
    """A place where the network can be had in several ways; the first is as it is."""

    name: str
    kind: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise InputError(f"the choice {self.name!r} has no options; it needs at least one, the network as it is")


@dataclass(frozen=True)
class Term:
    """A part of a cost.

    Attributes:
        scope: the choices that it depends on, by number.
        of: the options of those -> cost. Called once for each combination that is looked at.
    """

    scope: tuple[int, ...]
    of: Callable[[Assignment], float]


@dataclass
class Problem:
    """Choices, costs, and the limits of some of the costs.

    Raises:
        InputError: a limit of an unknown cost, or one that no assignment keeps.
    """

    choices: Sequence[Choice]
    costs: Mapping[str, Sequence[Term]]
    limits: Mapping[str, float]
    _known: dict[tuple[str, int, Assignment], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in self.limits:
            if name not in self.costs:
                raise InputError(f"there is no cost {name!r}; there are {', '.join(self.costs)}")
        self.touching = {
            name: [[t for t, term in enumerate(terms) if c in term.scope] for c in range(len(self.choices))]
            for name, terms in self.costs.items()
        }

    @property
    def first(self) -> Assignment:
        """The network as it is."""
        return (0,) * len(self.choices)

    @property
    def first_is_best(self) -> bool:
        """Whether no option of any choice damages less than the first, as none does where that is the original."""
        return all(choice.options[0].damage <= option.damage for choice in self.choices for option in choice.options)

    def term(self, name: str, number: int, options: Assignment) -> float:
        """One term's cost, for the options of its scope."""
        key = (name, number, options)
        if key not in self._known:
            self._known[key] = float(self.costs[name][number].of(options))
        return self._known[key]

    def at(self, name: str, number: int, assignment: Assignment) -> float:
        """One term's cost."""
        return self.term(name, number, tuple(assignment[c] for c in self.costs[name][number].scope))

    def cost(self, name: str, assignment: Assignment) -> float:
        return sum(self.at(name, number, assignment) for number in range(len(self.costs[name])))

    def change(self, name: str, assignment: Assignment, choice: int, option: int) -> float:
        """What a cost rises by when one choice takes another option."""
        other = replaced(assignment, choice, option)
        touched = self.touching[name][choice]
        return sum(self.at(name, t, other) - self.at(name, t, assignment) for t in touched)

    def damage(self, assignment: Assignment) -> float:
        return sum(choice.options[option].damage for choice, option in zip(self.choices, assignment, strict=True))

    def keeps(self, assignment: Assignment) -> bool:
        """Whether no cost exceeds its limit."""
        return all(self.cost(name, assignment) <= limit * (1 + SLACK) for name, limit in self.limits.items())

    def excess(self, assignment: Assignment) -> float:
        """By how many times its limit the worst cost exceeds it; 0 where none does."""
        over = (self.cost(name, assignment) / limit - 1 for name, limit in self.limits.items())
        return max(0.0, *over) if self.limits else 0.0

    def combinations(self) -> int:
        """How many there are to look at where every term is asked for all of its scope's options."""
        return sum(
            math.prod(len(self.choices[c].options) for c in term.scope) for n in self.limits for term in self.costs[n]
        )

    def options_of(self, term: Term) -> list[Assignment]:
        """Every combination of the options of its scope."""
        return list(product(*(range(len(self.choices[c].options)) for c in term.scope)))

    def shortfall(self, least: Assignment) -> InputError:
        """What to say where even this assignment, the cheapest that was found, keeps not all limits."""
        told = []
        for name, limit in self.limits.items():
            cost, whole = self.cost(name, least), self.cost(name, self.first)
            if cost > limit * (1 + SLACK):
                terms = range(len(self.costs[name]))
                fixed = [t for t in terms if self.at(name, t, least) >= 0.99 * self.at(name, t, self.first) > 0]
                share = sum(self.at(name, t, least) for t in fixed) / cost
                told.append(
                    f"{name} can be brought from {whole:.4g} to {cost:.4g} at the least, {limit:.4g} were asked for; "
                    f"{share:.0%} of what is left cannot be made smaller"
                )
        names = few([choice.name for choice in self.choices], NAMED)
        return InputError(f"the budget is out of reach with {len(self.choices)} choices ({names}): {'; '.join(told)}")


def replaced(assignment: Assignment, choice: int, option: int) -> Assignment:
    """The same with another option of one choice."""
    return (*assignment[:choice], option, *assignment[choice + 1 :])
