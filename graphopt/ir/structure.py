"""The nesting of a model's inputs and outputs as plain JSON, so that an artifact can rebuild it without running code.

    (x, {"mask": m})     <->  {"tuple": [null, {"dict": {"mask": null}}]}
    tensor               <->  null
    True, 3, "a", None   <->  {"value": true}, ...     part of the model, not an input
    4 N L + 1            <->  {"size": [[4, [1, 1]], [1, [0, 0]]]}    a number that follows the free sizes N and L: see `Size`
    Point(x=x, y=y)      <->  {"named": {"type": "Point", "fields": {"x": null, "y": null}}}

A named tuple comes back as a named tuple of the same fields; any other class with named fields as `Fields`.
"""

from __future__ import annotations

import keyword
import math
from collections import defaultdict, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.utils.errors import InputError

LONGEST, HIGHEST = 100, 8  # terms of a size, and powers in them: enough for what models return


class Fields(dict[str, Any]):
    """Stands for an output class of the model's own: read as `out.logits`, `out["logits"]` or `out[0]`."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the model's output has no field {name!r}; it has {', '.join(self)}")

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested value, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def to_device(value: Any, device: torch.device) -> Any:
    """A nested value with its tensors on a device."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), value)


@dataclass(frozen=True)
class Size:
    """A number that follows the free sizes: the sum over `terms` of coefficient * size[0] ** power[0] * size[1] ** power[1]"""

    terms: tuple[tuple[int, tuple[int, ...]], ...]

    def of(self, sizes: Sequence[int]) -> int:
        return sum(c * math.prod(s**p for s, p in zip(sizes, powers, strict=True)) for c, powers in self.terms)


# Nested values of this class are flattened like those of the class that it stands for.
pytree.register_pytree_node(
    Fields, lambda f: (list(f.values()), list(f)), lambda v, names: Fields(zip(names, v, strict=True))
)


def encode(value: Any) -> Any:
    """The JSON form of a nested value; tensors become null.

    Raises:
        InputError: something in it is neither a tensor, a plain value nor a container PyTorch knows.
    """
    leaves, spec = pytree.tree_flatten(value)
    return _encode(spec, iter(leaves))


def _encode(spec: Any, leaves: Iterator[Any]) -> Any:
    if spec.is_leaf():
        leaf = next(leaves)
        if isinstance(leaf, Tensor):
            return None
        if isinstance(leaf, Size):
            return {"size": [[c, list(powers)] for c, powers in leaf.terms]}
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return {"value": leaf}
        raise InputError(
            f"the model takes or returns a {type(leaf).__name__}, which an artifact cannot hold; use tensors"
        )
    children = [_encode(child, leaves) for child in (spec.child(i) for i in range(spec.num_children))]
    if spec.type in (list, tuple):
        return {spec.type.__name__: children}
    kind = spec.context if pytree.is_namedtuple_class(spec.context) else spec.type
    if issubclass(kind, dict) and kind.__module__ in ("builtins", "collections"):
        keys = spec.context[1] if issubclass(kind, defaultdict) else spec.context
        if not all(isinstance(key, str) for key in keys):
            raise InputError(f"the model takes or returns a dictionary with keys {keys}; an artifact needs strings")
        return {"dict": dict(zip(keys, children, strict=True))}
    names = getattr(kind, "_fields", None) or _field_names(spec.context)
    if names is None:
        return {"list": children}
    fields = dict(zip(names, children, strict=True)) | {key: {"value": None} for key in _empty_fields(spec.context)}
    return {"named": {"type": kind.__name__, "tuple": issubclass(kind, tuple), "fields": fields}}


def _field_names(context: Any) -> list[str] | None:
    """The names of a registered class's fields, which stand somewhere in what it told PyTorch about itself."""
    candidates = [context, *context] if isinstance(context, (list, tuple)) else [context]
    for found in candidates:
        if isinstance(found, (list, tuple)) and found and all(isinstance(k, str) for k in found):
            return list(found)
    return None


def _empty_fields(context: Any) -> list[str]:
    """The fields of a dataclass that are None: torch keeps their names beside those of the others."""
    two = isinstance(context, (list, tuple)) and len(context) == 2 and all(isinstance(names, list) for names in context)
    return list(context[1]) if two else []


def decode(structure: Any, tensors: Iterator[Any], sizes: Sequence[int] = ()) -> Any:
    """The nested value again, its tensors taken in order from `tensors`; `sizes`: the free sizes of the call."""
    if structure is None:
        return next(tensors)
    (form, content), *_ = structure.items()
    if form == "value":
        return content
    if form == "size":
        return Size(_terms(content)).of(sizes)
    if form == "list":
        return [decode(c, tensors, sizes) for c in content]
    if form == "tuple":
        return tuple(decode(c, tensors, sizes) for c in content)
    if form == "dict":
        return {k: decode(c, tensors, sizes) for k, c in content.items()}
    fields = {k: decode(c, tensors, sizes) for k, c in content["fields"].items()}
    if content["tuple"]:
        return namedtuple(content["type"], list(fields))(**fields)
    return Fields(fields)


def leaves(structure: Any, value: Any, where: str = "the input") -> list[Any]:
    """What stands in `value` at the tensors of `structure`, in order.

    Raises:
        InputError: `value` is nested in another way, or a plain value in it is not the one the model was captured with.
    """
    if structure is None:
        return [value]
    (form, content), *_ = structure.items()
    if form == "value":
        if value != content:
            raise InputError(f"{where} must be {content!r}, as when the model was captured, got {value!r}")
        return []
    if form in ("list", "tuple"):
        if not isinstance(value, (list, tuple)) or len(value) != len(content):
            raise InputError(f"{where} must be a {form} of {len(content)}, got {_shown(value)}")
        parts = [(f"{where}[{i}]", c, v) for i, (c, v) in enumerate(zip(content, value, strict=True))]
    else:
        entries = content if form == "dict" else content["fields"]
        found = value if isinstance(value, Mapping) else getattr(value, "_asdict", lambda: vars(value))()
        if set(found) != set(entries):
            raise InputError(
                f"{where} must have the entries {', '.join(entries)}, got {', '.join(map(str, found)) or 'none'}"
            )
        parts = [(f"{where}[{k!r}]", c, found[k]) for k, c in entries.items()]
    return [leaf for inner, c, v in parts for leaf in leaves(c, v, inner)]


def unpacked(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], takes_dictionary: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments, where one dictionary, as tokenizers return it, may stand for all: `model(batch)` is `model(**batch)`.

    Args:
        takes_dictionary: the model's own positional arguments are a single dictionary, which is then what came.
    """
    if kwargs or len(args) != 1 or not isinstance(args[0], Mapping) or takes_dictionary:
        return args, dict(kwargs)
    return (), dict(args[0])


def takes_dictionary(structure: Any) -> bool:
    """Whether the positional arguments in the structure of `(args, kwargs)` are a single dictionary."""
    match structure:
        case {"tuple": [{"tuple": [{"dict": _} | {"named": _}]}, _]}:
            return True
    return False


def check(structure: Any) -> int:
    """The number of tensors in a structure read from a file. Raises `ValueError` where it is malformed."""
    if structure is None:
        return 1
    if not isinstance(structure, dict) or len(structure) != 1:
        raise ValueError(f"not a structure: {structure!r}")
    ((form, content),) = structure.items()
    if form == "value":
        if not (content is None or isinstance(content, (bool, int, float, str))):
            raise ValueError(f"not a plain value: {content!r}")
        return 0
    if form == "size":
        _terms(content)
        return 0
    if form in ("list", "tuple") and isinstance(content, list):
        return sum(map(check, content))
    entries = content.get("fields") if form == "named" and isinstance(content, dict) else content
    if form not in ("dict", "named") or not isinstance(entries, dict):
        raise ValueError(f"not a structure: {structure!r}")
    if form == "named":
        names = [content.get("type"), *(entries if content.get("tuple") is True else ())]
        # Python makes the class of a namedtuple from text.
        if not all(isinstance(n, str) and n.isidentifier() and not keyword.iskeyword(n) for n in names):
            raise ValueError(f"not a structure: {names!r} are not the names of a class and its fields")
        if not isinstance(content.get("tuple"), bool) or any(n.startswith("_") for n in names[1:]):
            raise ValueError(f"not a structure: {structure!r}")
    return sum(map(check, entries.values()))


def _terms(content: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The terms of a size. A plain list, which older files hold, are coefficients of one size, lowest power first."""
    if not isinstance(content, list) or not 0 < len(content) <= LONGEST:
        raise ValueError(f"not the terms of a size: {str(content)[:100]}")
    terms = [c if isinstance(c, list) else [c, [power]] for power, c in enumerate(content)]
    for term in terms:
        powers = term[1] if len(term) == 2 and isinstance(term[1], list) else [-1]
        if type(term[0]) is not int or not all(type(p) is int and 0 <= p <= HIGHEST for p in powers):
            raise ValueError(f"not the terms of a size: {str(content)[:100]}")
    return tuple((c, tuple(powers)) for c, powers in terms)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple, dict)) else type(value).__name__
