"""Free sizes: what calls may choose, by name, with the dimensions of the inputs that have it and the numbers it takes.

    input_ids [batch, sequence], mask [batch, sequence]   ->   batch: places (0, 0), (1, 0)      sequence: (0, 1), (1, 1)
    image [1, 3, 2 * height, width]                       ->   height: place (0, 2, factor 2)    width: (0, 3)

One free size may be the batch, which counts samples; see `batch_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

from graphopt.utils.errors import InputError

BATCH = "batch"
LONGEST, LARGEST = 200, 2**62  # characters of a name, and what torch can count


@dataclass(frozen=True)
class Place:
    """A dimension of an input, `factor * size + offset` long.

    Attributes:
        input: which of the graph's input tensors.
    """

    input: int
    dimension: int
    factor: int = 1
    offset: int = 0

    def length(self, size: int) -> int:
        return self.factor * size + self.offset

    def size(self, length: int) -> int | None:
        """The free size that makes the dimension so long; None where there is none."""
        size, rest = divmod(length - self.offset, self.factor)
        return None if rest else size


@dataclass(frozen=True)
class FreeSize:
    """A size that calls may choose: `min`, `min + step`, ... up to `max`.

    Attributes:
        places: all dimensions of inputs that have it; never empty.
        min: the least. max: the largest; None: without a limit.
    """

    name: str
    places: tuple[Place, ...]
    min: int = 1
    max: int | None = None
    step: int = 1

    def takes(self, size: int) -> bool:
        within = self.min <= size and (self.max is None or size <= self.max)
        return within and (size - self.min) % self.step == 0

    def following(self, size: int) -> Iterator[int]:
        """The sizes from `size` on, smallest first."""
        size += (self.min - size) % self.step if size > self.min else self.min - size
        while self.max is None or size <= self.max:
            yield size
            size += self.step

    def label(self, place: Place) -> str:
        """What a dimension is called: `height`, or `2*height+1`."""
        factor = f"{place.factor}*" if place.factor != 1 else ""
        return f"{factor}{self.name}{place.offset:+d}" if place.offset else factor + self.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FreeSize:
        """The free size again, from data that `check` passed."""
        return cls(**{**data, "places": tuple(Place(**place) for place in data["places"])})

    def __str__(self) -> str:
        end = f"to {self.max}" if self.max is not None else "upwards"
        steps = f" in steps of {self.step}" if self.step != 1 else ""
        return f"{self.name!r} goes from {self.min} {end}{steps}"


def batch_of(sizes: Iterable[FreeSize]) -> FreeSize | None:
    """The one that counts samples: called `batch`, else the first; always the first dimension of inputs."""
    sizes = list(sizes)
    named = [s for s in sizes if s.name == BATCH]
    first = [s for s in named or sizes if all((p.dimension, p.factor, p.offset) == (0, 1, 0) for p in s.places)]
    return first[0] if first else None


def labels(sizes: Iterable[FreeSize], shapes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The shapes of the input tensors with names in place of free sizes."""
    named = [list(shape) for shape in shapes]
    for size in sizes:
        for place in size.places:
            named[place.input][place.dimension] = size.label(place)
    return [tuple(shape) for shape in named]


def check(data: Any, ranks: Sequence[int]) -> None:
    """Raise `ValueError` where free sizes read from a file are malformed.

    Args:
        ranks: of the input tensors.
    """
    if not isinstance(data, list):
        raise ValueError(f"the free sizes are a {type(data).__name__}")
    seen: set[Any] = set()
    for size in data:
        _check(size, ranks, seen)


def _check(size: Any, ranks: Sequence[int], seen: set[Any]) -> None:
    """Check one; `seen`: names and dimensions of those before."""
    wanted = {f.name for f in fields(FreeSize)}
    if (
        not isinstance(size, dict)
        or size.keys() != wanted
        or not isinstance(size["places"], list)
        or not size["places"]
    ):
        raise ValueError(f"not a free size: {str(size)[:100]}")
    name, limits = size["name"], [size["min"], size["step"], *([] if size["max"] is None else [size["max"]])]
    if not isinstance(name, str) or not name.isidentifier() or len(name) > LONGEST or not _counts(limits, 1):
        raise ValueError(f"not a free size: {str(size)[:100]}")
    keys: list[Any] = [name]
    for place in size["places"]:
        if not isinstance(place, dict) or place.keys() != {f.name for f in fields(Place)}:
            raise ValueError(f"not a dimension: {str(place)[:100]}")
        index, dimension = place["input"], place["dimension"]
        if not _counts([index, dimension], 0) or not _counts([place["factor"]], 1) or type(place["offset"]) is not int:
            raise ValueError(f"not a dimension: {str(place)[:100]}")
        if index >= len(ranks) or dimension >= ranks[index] or abs(place["offset"]) > LARGEST:
            raise ValueError(f"there is no dimension {dimension} of input {index}")
        keys.append((index, dimension))
    if not seen.isdisjoint(keys) or len(set(keys)) != len(keys):
        raise ValueError(f"the free size {name!r} is there twice")
    seen.update(keys)


def _counts(values: Iterable[Any], least: int) -> bool:
    return all(type(v) is int and least <= v <= LARGEST for v in values)


def fits(shape: Sequence[int], wanted: Sequence[Any]) -> bool:
    """Whether a tensor has as many dimensions as wanted and every size that is a number there."""
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted, shape, strict=True)
    )


def read(sizes: Iterable[FreeSize], names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[int]:
    """The free sizes of a call in order, from the shapes of its input tensors, which have as many dimensions as they must.

    Raises:
        InputError: two dimensions that must be equal are not, or a size is not among those it takes; names input and dimension.
    """
    return [_read(size, names, shapes) for size in sizes]


def _read(size: FreeSize, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> int:
    found: list[tuple[str, int]] = []
    for place in size.places:
        length = shapes[place.input][place.dimension]
        where = f"dimension {place.dimension} of input {names[place.input]!r}"
        value = place.size(length)
        if value == 0 and size.name == BATCH:
            raise InputError(f"the batch is empty: {where} is 0")
        if value is None or not size.takes(value):
            label = size.label(place)
            what = f"; it is {label}, and {size}" if label != size.name else f", but {size}"
            raise InputError(f"{where} is {length}{what}")
        found.append((where, value))
    for where, value in found[1:]:
        if value != found[0][1]:
            raise InputError(
                f"the inputs have different sizes: {size.name!r} is {found[0][1]} by {found[0][0]} and {value} by {where}"
            )
    return found[0][1]


def stand_ins(
    sizes: Iterable[FreeSize], example: Sequence[int], least: Sequence[int], taken: Iterable[int]
) -> list[int]:
    """Numbers for the free sizes to be traced with: two or more, and unlike all others, because an operator that compares two
    equal numbers ties the sizes.

    Args:
        example: the sizes of the example. least: where to start looking. taken: numbers to avoid.
    """
    avoid, out = set(taken), []
    for size, own, start in zip(sizes, example, least, strict=True):
        above = islice(size.following(start), 1000)
        below = islice(size.following(size.min), 1000)
        found = next((n for n in (*above, *below) if n > 1 and avoid.isdisjoint(_lengths(size, n))), own)
        avoid |= _lengths(size, found)
        out.append(found)
    return out


def _lengths(size: FreeSize, value: int) -> set[int]:
    return {value, *(place.length(value) for place in size.places)}
