"""Which sizes are to be free: what the caller names, what a program declares, and the batch.

    dynamic_shapes={"ids": {0: "batch", 1: Dim("sequence", max=512)}, "mask": {0: "batch", 1: Dim("sequence", max=512)}}
    dynamic_shapes=({2: 2 * Dim("height"), 3: Dim.AUTO},)

The form is that of `torch.export.export(dynamic_shapes=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _DerivedDim, _DimHint, _DimHintType

from graphopt.frontend import signature
from graphopt.ir.shapes import is_free
from graphopt.ir.sizes import BATCH, FreeSize, Place, batch_of
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """A size that is to be free.

    Attributes:
        required: refuse rather than fix it.
        named: by the caller, so that no other name may stand for it.
        remedy: where it cannot be free.
    """

    size: FreeSize
    required: bool
    named: bool = False
    remedy: str = "leave it out of dynamic_shapes"

    def at(self, *places: Place) -> Wanted:
        """The same for some of its dimensions."""
        return replace(self, size=replace(self.size, places=places))


Asked = dict[tuple[int, int], Any]  # by input tensor and dimension: what dynamic_shapes says


def wanted(
    bound: Mapping[str, Any], names: Sequence[str], asked: Asked, declared: list[Wanted], batch: bool
) -> list[Wanted]:
    """The sizes that are to be free, in order of the dimensions they are first met at.

    Args:
        bound: the example's arguments by name. names: of its tensors.
        asked: by the caller. declared: by a program. batch: let the number of samples be free where it can.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(dict(bound)) if isinstance(leaf, Tensor)]
    found: dict[str, Wanted] = {}
    for place, spec in asked.items():
        _add(found, place, spec, names, int(tensors[place[0]].shape[place[1]]))
    for each in declared:
        rest = tuple(p for p in each.size.places if (p.input, p.dimension) not in asked)
        if rest:
            name = _unused(each.size.name, found)
            found[name] = replace(each, size=replace(each.size, name=name, places=rest))
    taken = {(p.input, p.dimension) for w in found.values() for p in w.size.places} | asked.keys()
    if batch and batch_of(w.size for w in found.values()) is None and BATCH not in found:
        firsts = [(i, int(t.shape[0])) for i, t in enumerate(tensors) if t.dim() and (i, 0) not in taken]
        places = tuple(Place(i, 0) for i, n in firsts if n == firsts[0][1])
        if places:
            found[BATCH] = Wanted(FreeSize(BATCH, places), required=False)
    return sorted(found.values(), key=lambda w: min((p.input, p.dimension) for p in w.size.places))


def _add(found: dict[str, Wanted], where: tuple[int, int], spec: Any, names: Sequence[str], length: int) -> None:
    """Add what the caller says about one dimension, whose example is so long."""
    index, dimension = where
    place, low, high, required, named = Place(index, dimension), 1, None, True, True
    if isinstance(spec, _DimHint):
        if spec.type == _DimHintType.STATIC:
            return
        name = _unused(BATCH if dimension == 0 and BATCH not in found else f"{names[index]}_{dimension}", found)
        low, high, named = spec.min or 1, spec.max, False
        required = spec.type == _DimHintType.DYNAMIC
    elif isinstance(spec, int):
        return
    elif isinstance(spec, str):
        name = spec
    else:
        root = spec
        if isinstance(spec, _DerivedDim):
            root, offset = spec.root, int(spec.fn(0))
            place = Place(index, dimension, int(spec.fn(1)) - offset, offset)
        name, low, high = root.__name__, max(1, root.min), root.max
    high = high if isinstance(high, int) else None
    new = FreeSize(name, (place,), low, high)
    value = place.size(length)
    if value is None or value < low or (high is not None and value > high):
        raise InputError(
            f"dynamic_shapes: dimension {dimension} of the example input {names[index]!r} is {length}; it is {new.label(place)}, "
            f"and {new}"
        )
    if name in found:
        known = found[name].size
        ranges = {(known.min, known.max), (low, high)} - {(1, None)}  # a plain name says nothing about the range
        if len(ranges) == 2:
            raise InputError(f"dynamic_shapes: {known} in one place, and {new} in another; give it one range")
        low, high = ranges.pop() if ranges else (1, None)
        new = FreeSize(name, (*known.places, place), low, high)
    found[name] = Wanted(new, required, named)


def asked(dynamic_shapes: Any, bound: Mapping[str, Any], names: Sequence[str]) -> Asked:
    """What the caller says, by input tensor and dimension.

    Args:
        dynamic_shapes: as `torch.export.export` takes it.

    Raises:
        InputError: it is not nested like the inputs, names what there is not, or says something that is no size.
    """
    if dynamic_shapes is None:
        return {}
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # a ShapesCollection of torch
        raise InputError("dynamic_shapes must be a dictionary or tuple nested like the inputs, not a ShapesCollection")
    tensors = iter(range(len(names)))
    found: Asked = {}
    for leaf, spec, where in _leaves(dict(bound), dynamic_shapes, "the inputs"):
        if isinstance(leaf, Tensor):
            index = next(tensors)
            found |= {(index, d): s for d, s in _dimensions(leaf, spec, names[index]).items()}
        elif spec not in (None, {}, (), []):
            raise InputError(f"dynamic_shapes says {spec!r} of {where}, which is no tensor; leave it out")
    return found


def _leaves(value: Any, spec: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """The leaves of nested inputs, with what is said about each."""
    children, structure = pytree.tree_flatten(value, is_leaf=lambda v: v is not value)
    if structure.is_leaf() or isinstance(value, Tensor):
        yield value, spec, where
        return
    keys = signature.keys_of(structure, len(children))
    if spec is None:
        said: list[Any] = [None] * len(children)
    elif isinstance(spec, Mapping):
        named = {str(k): v for k, v in spec.items()}
        if unknown := named.keys() - set(keys):
            raise InputError(
                f"dynamic_shapes names {min(unknown)!r}, and {where} are {', '.join(keys)}; "
                "the form is {input: {dimension: name or Dim}}"
            )
        said = [named.get(key) for key in keys]
    elif isinstance(spec, (tuple, list)) and len(spec) == len(children):
        said = list(spec)
    else:
        raise InputError(
            f"dynamic_shapes says {spec!r:.100} of {where}, which {'is' if len(keys) == 1 else 'are'} {', '.join(keys)}; "
            "nest it like the inputs"
        )
    for key, child, each in zip(keys, children, said, strict=True):
        yield from _leaves(child, each, f"{where} {key!r}" if where == "the inputs" else f"{where}[{key!r}]")


def _dimensions(tensor: Tensor, spec: Any, name: str) -> dict[int, Any]:
    """By dimension, what is said about one tensor."""
    if spec is None:
        return {}
    if isinstance(spec, (tuple, list)):
        if len(spec) != tensor.dim():
            raise InputError(
                f"dynamic_shapes says {len(spec)} sizes of input {name!r}, which has {tensor.dim()} dimensions"
            )
        spec = dict(enumerate(spec))
    if not isinstance(spec, Mapping):
        raise InputError(f"dynamic_shapes says {spec!r:.100} of input {name!r}; give {{dimension: name or Dim}}")
    out = {}
    for dimension, size in spec.items():
        if type(dimension) is not int or not -tensor.dim() <= dimension < tensor.dim():
            raise InputError(f"dynamic_shapes: input {name!r} has {tensor.dim()} dimensions, and no {dimension!r}")
        if size is not None:
            out[dimension % tensor.dim()] = _checked(size, dimension, name)
    return out


def _checked(size: Any, dimension: int, name: str) -> Any:
    named = isinstance(size, str) and size.isidentifier()
    if named or type(size) is int or isinstance(size, (_DimHint, _DerivedDim, Dim)):
        return size
    raise InputError(
        f"dynamic_shapes: {size!r:.100} for dimension {dimension} of input {name!r} is neither a name, a torch.export.Dim, "
        "Dim.AUTO, Dim.DYNAMIC nor None"
    )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 0, name
    while free in taken:
        number, free = number + 1, f"{name}_{number + 1}"
    return free


# ---- What a program declares ----------------------------------------------------------------------------------------


def declared(program: ExportedProgram, names: Sequence[str]) -> list[Wanted]:
    """The free sizes of an exported program, called after the input and dimension they are first met at; the first dimension of
    the first input that has one is the batch.

    Args:
        names: of its input tensors.
    """
    user = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    found: dict[Any, tuple[str, list[Place]]] = {}
    for index, value in enumerate(v for v in values if isinstance(v, Tensor)):
        for dimension, length in enumerate(value.shape):
            if not is_free(length):
                continue
            symbol, place = _linear(length, Place(index, dimension))
            batch = dimension == 0 and all(name != BATCH for name, _ in found.values())
            found.setdefault(symbol, (BATCH if batch else f"{names[index]}_{dimension}", []))[1].append(place)
    out = []
    for symbol, (name, places) in found.items():
        limits = program.range_constraints.get(symbol)
        low = int(limits.lower) if limits is not None and limits.lower.is_Integer else 1
        high = int(limits.upper) if limits is not None and limits.upper.is_Integer else None
        size = FreeSize(name, tuple(places), low if low > 2 else 1, high)
        remedy = "pass program.module() in place of the program"
        out.append(Wanted(size, required=name != BATCH, remedy=remedy))
    return out


def _linear(length: Any, place: Place) -> tuple[Any, Place]:
    """The symbol that a declared size is made of, and how."""
    expression = length.node.expr
    symbols = list(expression.free_symbols)
    polynomial = expression.as_poly(*symbols) if len(symbols) == 1 else None
    if polynomial is None or polynomial.degree() != 1 or not all(c.is_Integer for c in polynomial.coeffs()):
        raise InputError(
            f"the program declares dimension {place.dimension} of input {place.input} as {expression}, which is no free size "
            "times a number; export it with another Dim"
        )
    factor, offset = int(polynomial.nth(1)), int(polynomial.nth(0))
    return symbols[0], replace(place, factor=factor, offset=offset)
