"""Whether a graph answers what the model answers on sizes that are not the example's.

Guards say what torch saw while it traced; only running tells the rest: what the model itself rejects, and what it computes in
another way where a size is one. Tried are a larger and the least number for every free size, and those that guards make doubtful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.frontend import diagnose
from graphopt.frontend.free_sizes import Domain, Tied
from graphopt.ir.sizes import BATCH, FreeSize
from graphopt.utils.errors import InputError

Compare = Callable[[Sequence[int]], None]  # raises where graph and model differ, or one fails, on inputs of these sizes


def check(domains: Sequence[Domain], own: Sequence[int], compare: Compare, smallest: int) -> list[FreeSize]:
    """The free sizes, with the least ones that were found to work.

    Args:
        own: the example's sizes. smallest: where to start: 2 where a size of one is known to be treated otherwise.

    Raises:
        Tied: a size needs another graph.
    """
    trial = _Trial(list(domains), list(own), compare)
    trial.larger()
    for index, domain in enumerate(domains):
        trial.doubtful(index, domain.doubtful)
    trial.least(smallest)
    return [d.wanted.size for d in trial.domains]


class _Trial:
    def __init__(self, domains: list[Domain], own: list[int], compare: Compare) -> None:
        self.domains, self.own, self.compare = domains, own, compare

    def size(self, index: int) -> FreeSize:
        return self.domains[index].wanted.size

    def larger(self) -> None:
        numbers = [self._above(index) for index in range(len(self.own))]
        if self._works(numbers):
            return
        for index, number in enumerate(numbers):
            self._needs(index, number)
        raise Tied(f"{self._shown(numbers)} need another graph")

    def _above(self, index: int) -> int:
        size, own = self.size(index), self.own[index]
        above = next(size.following(max(own, 2) + 1), own)
        return above if above != own or own - size.step < size.min else own - size.step

    def doubtful(self, index: int, numbers: Sequence[int]) -> None:
        for number in sorted(numbers, reverse=True):
            if not self._works(self._only(index, number)):
                self._raise_least(index, number + self.size(index).step)
                return

    def least(self, smallest: int) -> None:
        for minimum in (smallest, 2):  # several at once may be too little where each alone is not
            numbers = [min(next(self.size(i).following(minimum), own), own) for i, own in enumerate(self.own)]
            if numbers == self.own or self._works(numbers):  # the example was compared before
                return
            for index, number in enumerate(numbers):
                self._find_least(index, number)
            if minimum != 2:
                for index in range(len(self.own)):
                    if self.size(index).name != BATCH:
                        own = self.own[index]
                        self._raise_least(index, min(next(self.size(index).following(2), own), own))
        numbers = [min(next(self.size(i).following(smallest), own), own) for i, own in enumerate(self.own)]
        if not self._works(numbers):
            raise Tied(f"{self._shown(numbers)} need another graph")

    def _find_least(self, index: int, number: int) -> None:
        """Between a size that may fail and the example's own, which does not, the least that works."""
        if self._works(self._only(index, number)):
            return
        if self.size(index).name == BATCH:
            self._needs(index, number)
        candidates = list(range(number, self.own[index] + 1, self.size(index).step))
        low, high = 0, len(candidates) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._works(self._only(index, candidates[middle])) else (middle, high)
        self._raise_least(index, candidates[high])

    def _raise_least(self, index: int, least: int) -> None:
        self.domains[index] = self.domains[index].with_least(least)

    def _only(self, index: int, number: int) -> list[int]:
        return [number if i == index else own for i, own in enumerate(self.own)]

    def _works(self, numbers: Sequence[int]) -> bool:
        try:
            self.compare(numbers)
        except Exception:
            return False
        return True

    def _needs(self, index: int, number: int) -> None:
        """Raise `Tied` where this one size does not work."""
        what = f"a batch of {number}" if self.size(index).name == BATCH else f"{self.size(index).name} = {number}"
        try:
            self.compare(self._only(index, number))
        except InputError as error:
            cause = diagnose.headline(error.__cause__) if error.__cause__ is not None else str(error)
            raise Tied(f"the model itself rejects {what} ({cause})", self.domains[index].wanted) from error
        except Exception as error:
            raise Tied(
                f"{what} needs another graph ({diagnose.headline(error)})", self.domains[index].wanted
            ) from error

    def _shown(self, numbers: Sequence[int]) -> str:
        return ", ".join(f"{self.size(i).name} = {n}" for i, n in enumerate(numbers))
