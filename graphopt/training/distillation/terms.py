"""One row of the table of distillation losses: places x transform x distance.

    Term(squared, places="stages", transform=attention_map)        attention transfer
    Term(squared, places="stages", adapt=True)                     hints
    Term(Divergence(4.0), places="outputs")                        soft targets

For each pair of places: values of the student pass an adapter (`adapt`), maps of two resolutions are brought to the smaller one
(`resize`), both sides are transformed, and a distance is taken. What learns (an adapter, a class of modules in place of a
function) is made for the sizes of each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from graphopt.training.distillation.learned import Adapter, Shape
from graphopt.training.distillation.places import Pair
from graphopt.training.distillation.transforms import as_is, same_size
from graphopt.utils.errors import InputError

Function = Callable[..., Any]


@dataclass(frozen=True)
class Term:
    """See the head of this file.

    Attributes:
        distance: of student and teacher, to one number or to one for each sample; or a class of modules (see `learned`), made as
            `distance(sizes of the student's value, sizes of the teacher's)`.
        places: a rule of `graphopt.training.distillation.places`, where a user names none.
        transform: of the values of a place.
        teacher: of the teacher's values, where it is another one; may be a class of modules.
        adapt: let a learned 1x1 convolution give the student the teacher's channels: always, never, or (None) where they differ
            and the term needs them equal (`equal`). A function makes the adapter from both sizes.
        equal: whether values must have the same channels behind the adapter.
        alike: whether what is compared must have one shape on both sides.
        resize: bring maps of two resolutions to the smaller one. Without it they are as they are.
        consecutive: places are taken two by two, each with the next.
        combine: of several teachers, what their transformed values are together; None: each has a distance of its own, and their
            mean counts.
        weight: of the sum over places, beside other terms.
    """

    distance: Function
    places: str = "stages"
    transform: Function = as_is
    teacher: Function | None = None
    adapt: bool | Callable[[Shape, Shape], nn.Module] | None = None
    equal: bool = False
    alike: bool = True
    resize: bool = True
    consecutive: bool = False
    combine: Callable[[list[Any]], Any] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"the weight of a term must be over 0, got {self.weight}")

    @property
    def differentiates(self) -> bool:
        """Whether it wants gradients by the inputs."""
        return self.places == "gradients"


class Comparison(nn.Module):
    """A term on the places of a student and of one teacher, with what it learns.

    Args:
        pairs: the places; see `places.pairs`.

    Raises:
        InputError: places that cannot be compared.
    """

    def __init__(self, term: Term, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.term = term
        self.pairs = _two_by_two(pairs) if term.consecutive else list(pairs)
        self.adapters, self.teachers, self.distances = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for pair in self.pairs:
            adapters = _adapters(term, pair)
            self.adapters.append(adapters)
            sizes = _sizes(term, pair, adapters)
            self.teachers.append(_made(term.teacher or term.transform, *sizes))
            self.distances.append(_made(term.distance, *sizes))

    def student(self, values: Mapping[Any, Any], others: Mapping[Any, Any]) -> list[Any]:
        """What distances are taken of, for each pair of places, from values of the student (and the teacher, for their sizes)."""
        found = []
        for (place, other), adapters in zip(self.pairs, self.adapters, strict=True):
            own = place.values(values)
            if isinstance(adapters, nn.ModuleList) and len(adapters):
                own = tuple(adapt(value) for adapt, value in zip(adapters, own, strict=True))
            found.append(self.term.transform(*self._resized(own, other.values(others))))
        return found

    def teacher(self, values: Mapping[Any, Any], others: Mapping[Any, Any]) -> list[Any]:
        """The same from values of the teacher (and the student, for their sizes)."""
        found = []
        for (other, place), transform in zip(self.pairs, self.teachers, strict=True):
            found.append(transform(*self._resized(place.values(values), other.values(others))))
        return found

    def distance(self, student: list[Any], teacher: list[Any]) -> Tensor:
        """Summed over places: one number, or one for each sample.

        Raises:
            InputError: tensors of two shapes would be compared.
        """
        for one, other, pair in zip(student, teacher, self.pairs, strict=True):
            _check_shapes(self.term, one, other, pair)
        parts = zip(self.distances, student, teacher, strict=True)
        total: Tensor = sum(distance(one, other) for distance, one, other in parts)
        return self.term.weight * total

    def _resized(self, values: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.term.resize:
            return values
        return tuple(same_size(a, b)[0] for a, b in zip(values, others, strict=True))


def _adapters(term: Term, pair: Pair) -> nn.ModuleList:
    """One for each value of the student's place; none at all where none is needed."""
    if pair[0].read is not None:
        return nn.ModuleList()
    sizes = list(zip(*(place.shapes for place in pair), strict=True))
    differ = [own[:1] != other[:1] for own, other in sizes]
    if term.adapt is False and term.equal and any(differ):
        own, other = sizes[differ.index(True)]
        raise InputError(
            f"the student has {own[0]} channels at {pair[0].name!r}, the teacher {other[0]} at {pair[1].name!r}; let an adapter "
            "make up for it: adapt=True"
        )
    if term.adapt or (term.adapt is None and term.equal and any(differ)):
        make = term.adapt if callable(term.adapt) else Adapter
        return nn.ModuleList(make(own, other) for own, other in sizes)
    return nn.ModuleList()


def _sizes(term: Term, pair: Pair, adapters: nn.ModuleList) -> tuple[Shape, Shape]:
    """Of the first values as distances see them."""
    own, other = (place.shapes[0] for place in pair)
    if len(adapters):
        own = (other[0], *own[1:])
    if term.resize and len(own) == len(other) > 1:
        small = tuple(map(min, own[1:], other[1:]))
        own, other = (own[0], *small), (other[0], *small)
    return own, other


class _Called(nn.Module):
    """A function where modules are wanted."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Any) -> Any:
        return self.function(*values)


def _made(function: Function, student: Shape, teacher: Shape) -> nn.Module:
    """A module for these sizes where a class of modules is given (with options, by `functools.partial`)."""
    of = function.func if isinstance(function, partial) else function
    if isinstance(of, type) and issubclass(of, nn.Module):
        made: nn.Module = function(student, teacher)
        return made
    return _Called(function)


def _two_by_two(found: Sequence[Pair]) -> list[Pair]:
    found = list(found)
    if len(found) < 2:
        raise InputError(f"this method compares places two by two, and there is {len(found)}; name two at least")
    return [(a + c, b + d) for (a, b), (c, d) in pairwise(found)]


def mean(distance: Tensor, weights: Tensor | None) -> Tensor:
    """Of a distance for each sample, weighted; one number stays as it is, and takes the weights' mean."""
    if weights is None:
        return distance.mean()
    return (distance * weights).mean() if distance.dim() else distance * weights.mean()


def _check_shapes(term: Term, student: Any, teacher: Any, pair: Pair) -> None:
    tensors = isinstance(student, Tensor) and isinstance(teacher, Tensor)
    if term.alike and tensors and term.combine is None and student.shape != teacher.shape:
        raise InputError(
            f"at {pair[0].name!r} the student has {list(student.shape)}, the teacher {list(teacher.shape)} at {pair[1].name!r}; "
            "they must be the same for this method"
        )
