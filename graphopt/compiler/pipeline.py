"""A pipeline of passes as text, for command lines and files:

    simplify, fold-batch-norm, prune{keep_ratio=0.6, layers={"head*": None}}, quantize{estimator=minmax}, correct-bias

Passes are called as `graphopt.passes.names()` has them. In braces stand their options: plain values of Python, of which words
need no quotes; what becomes of them, `option_values.py` says. Target and calibration data are filled in where a pass takes
them; `data=None` leaves them out. Nothing runs.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from graphopt import passes
from graphopt.compiler.option_values import Misfit, converted, hints
from graphopt.data.calibration import Calibration
from graphopt.ir.passes import Pass
from graphopt.targets import Target
from graphopt.utils.errors import InputError, suggestion

NAME = re.compile(r"\s*([A-Za-z][\w-]*)\s*")
CLOSING = {"{": "}", "[": "]", "(": ")"}
DATA = ("data", "calibration")  # fields that calibration data go into
RESERVED = re.compile(
    rf"=\s*({'|'.join(sorted({*keyword.kwlist} - {'None', 'True', 'False'}))})\s*(?=,|$)"
)  # `scope=global`
WORDS = {"none": None, "true": True, "false": False}


class Named(NamedTuple):
    """A pass in a text: its class, and the options that were given."""

    kind: type
    options: dict[str, Any]


def pipeline(text: str) -> Callable[[Target, Calibration], list[Pass]]:
    """The passes that a text names, for `graphopt.optimize(passes=...)`.

    Raises:
        InputError: it cannot be read, or a pass or an option is unknown; before any work.
    """
    found = list(read(text))

    def make(target: Target, data: Calibration) -> list[Pass]:
        return [_made(each, target, data) for each in found]

    return make


def read(text: str) -> Iterator[Named]:
    """The passes in a text, checked as far as that can be done without target and data."""
    rest = text.strip()
    if not rest:
        raise InputError("no passes are named; give at least one, such as 'simplify'")
    while rest:
        match = NAME.match(rest)
        if match is None:
            raise InputError(f"expected the name of a pass at {rest[:30]!r} in {text!r}")
        kind, rest = passes.find(match[1]), rest[match.end() :]
        inside = ""
        if rest.startswith("{"):
            end = _end(rest, text)
            inside, rest = rest[1:end], rest[end + 1 :].lstrip()
        if rest and not rest.startswith(","):
            raise InputError(f"expected a comma at {rest[:30]!r} in {text!r}")
        yield Named(kind, _options(match[1], kind, inside))
        if rest and not (rest := rest[1:].lstrip()):
            raise InputError(f"a pass is missing behind the last comma of {text!r}")


def options(kind: type) -> list[str]:
    """The names of a pass's options. Raises `InputError` where it is no dataclass, so that nothing is known of them."""
    if not dataclasses.is_dataclass(kind):
        raise InputError(f"{kind.__name__} is no dataclass, so its options have no names; write the pipeline in Python")
    return [f.name for f in dataclasses.fields(kind) if f.init]


def _end(rest: str, text: str) -> int:
    """Where the brace that a text begins with is closed."""
    open_, quote = [], ""
    for place, letter in enumerate(rest):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in CLOSING:
            open_.append(CLOSING[letter])
        elif open_ and letter == open_[-1]:
            open_.pop()
            if not open_:
                return place
    raise InputError(f"a brace is not closed in {text!r}")


def _options(name: str, kind: type, inside: str) -> dict[str, Any]:
    quoted = RESERVED.sub(r'="\1"', inside)
    try:
        call = ast.parse(f"f({quoted})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the options of {name} cannot be read: {inside!r}; write key=value, ..., and quotes around text of several words"
        ) from error
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise InputError(f"the options of {name} need names, key=value, not {inside!r}")
    known, types, found = options(kind), hints(kind), {}
    for given in call.keywords:
        key = str(given.arg)
        if key not in known:
            hint = suggestion(key, known)
            raise InputError(
                f"{name} has no option {key!r}; {hint}{'It' if hint else 'it'} has {', '.join(known) or 'none'}"
            )
        if key in found:
            raise InputError(f"{name} is given {key!r} twice")
        found[key] = _value(name, key, given.value, types.get(key, Any))
    return found


def _value(name: str, key: str, node: ast.expr, hint: Any) -> Any:
    try:
        return converted(_plain(node), hint, _element)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: {key} {error}" if isinstance(error, Misfit) else f"{name}: {key}: {error}"
        ) from error


def _plain(node: ast.expr) -> Any:
    """What an expression stands for: a literal of Python, in which words are text."""
    if isinstance(node, ast.Name):
        return WORDS.get(node.id.lower(), node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(each) for each in node.elts] if isinstance(node, ast.List) else tuple(map(_plain, node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _plain(key): _plain(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None
        }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{ast.unparse(node)} is no plain value; give numbers, text, lists or dictionaries") from error


def _element(text: str) -> Any:
    """The pass that is an option of another one; target and data are the other one's."""
    first, *more = read(text)
    if more:
        raise InputError(f"one pass is wanted, not {text!r}")
    return first.kind(**first.options)


def _made(named: Named, target: Target, data: Calibration) -> Pass:
    fills: dict[str, Any] = {"target": target, **dict.fromkeys(DATA, data)}
    fields = {f.name: f for f in dataclasses.fields(named.kind)}
    if data.synthetic and "data" in fields and fields["data"].default is None:
        del fills["data"]  # made-up inputs say nothing about what matters
    filled = {key: value for key, value in fills.items() if key in fields}
    try:
        made: Pass = named.kind(**{**filled, **named.options})
    except (TypeError, ValueError) as error:
        raise InputError(f"{named.kind.__name__}: {error}") from error
    return made
