"""What a text gives for an option of a pass, as the type of the option wants it.

    NumberFormat             s8, "u16 affine"                               as `graphopt.formats.parse` reads it
    Target                   arm
    a dataclass              {weights: s8, activations: "u16 affine"}       its fields by name: `LayerFormat`
    a kind of pass           svd, "tucker{rank=(2, 8)}"                     an element of a text of passes
    mappings and sequences   {"head*": None}, [2, 4, 8]                     of any of these

Numbers, words and truth values stay as they are: whether they fit, the pass says. Functions and other objects have no text.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from graphopt.formats import NumberFormat, parse
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError, suggestion

PLAIN = (str, int, float, bool, Path, type(None))
NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float)}
SEQUENCES = (tuple, frozenset, set, list)


class Misfit(InputError):
    """No text stands for what an option takes, or this one does not."""


def hints(kind: type) -> dict[str, Any]:
    """The types of a class's fields; `Any` where they cannot be looked up."""
    try:
        return get_type_hints(kind)
    except Exception:  # of many kinds: annotations of others' packages are evaluated
        return {}


def converted(value: Any, hint: Any, element: Callable[[str], Any]) -> Any:
    """A plain value as a type wants it.

    Args:
        value: numbers, text, truth values and None, in lists, tuples and dictionaries.
        element: makes the pass that a text names.

    Raises:
        InputError: the value does not fit.
    """
    origin = get_origin(hint)
    make = partial(converted, element=element)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint), make)
    if hint is Any or value is None:  # whether a pass can do without, it says itself
        return value
    if hint is NumberFormat:
        return _format(value)
    if _is(origin, Mapping):
        return _mapping(value, hint, make)
    if _is(origin, Collection):
        return _sequence(value, hint, make)
    if hint in PLAIN or origin is Literal:
        return _plain(value, hint)
    if hint is Target:
        return find(value)
    if inspect.isabstract(hint):
        return _pass(value, hint, element)
    if dataclasses.is_dataclass(hint):
        return _dataclass(value, hint, make)
    raise Misfit("takes an object, which no text stands for; write the pipeline in Python")


def _is(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


def _first_that_fits(value: Any, arms: Collection[Any], make: Callable[[Any, Any], Any]) -> Any:
    errors: list[InputError] = []
    for arm in arms:
        if arm is type(None) and value is not None:
            continue
        try:
            return make(value, arm)
        except InputError as error:
            errors.append(error)
    raise next((error for error in errors if not isinstance(error, Misfit)), errors[0])


def _format(value: Any) -> NumberFormat:
    if not isinstance(value, str):
        raise Misfit(f"takes a number format such as s8 or 'u16 affine', not {value!r}")
    return parse(value)


def _mapping(value: Any, hint: Any, make: Callable[[Any, Any], Any]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Misfit(f"takes {{name: value}}, not {value!r}")
    of_values = (get_args(hint) or (Any, Any))[1]
    return {key: make(each, of_values) for key, each in value.items()}


def _sequence(value: Any, hint: Any, make: Callable[[Any, Any], Any]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Misfit(f"takes [value, ...], not {value!r}")
    of_values = [arg for arg in get_args(hint) if arg is not Ellipsis] or [Any]
    each = of_values if len(of_values) == len(value) else of_values[:1] * len(value)
    kind = next((kind for kind in SEQUENCES if get_origin(hint) is kind), type(value))
    return kind(make(one, of) for one, of in zip(value, each, strict=True))


def _plain(value: Any, hint: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        raise Misfit(f"takes a single value, not {value!r}")
    if hint in NUMBERS and not isinstance(value, NUMBERS[hint]):
        raise Misfit(f"takes {'a whole number' if hint is int else 'a number'}, not {value!r}")
    return value


def _dataclass(value: Any, hint: Any, make: Callable[[Any, Any], Any]) -> Any:
    known = hints(hint)
    if not isinstance(value, dict):
        raise Misfit(f"takes {{{', '.join(f'{name}: ...' for name in known)}}}, not {value!r}")
    for key in value:
        if key not in known:
            hint = suggestion(str(key), known)
            raise InputError(f"has no {key!r}; {hint}{'It' if hint else 'it'} has {', '.join(known)}")
    return hint(**{key: make(each, known[key]) for key, each in value.items()})


def _pass(value: Any, hint: Any, element: Callable[[str], Any]) -> Any:
    found = element(value) if isinstance(value, str) else value
    if not isinstance(found, hint):
        raise Misfit(f"takes a pass that is a {hint.__name__}, not {value!r}")
    return found
