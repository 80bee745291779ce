"""Names and containers in what is read from a file, checked before anything is built from them."""

from __future__ import annotations

import keyword
import re
from typing import Any

# A part of a constant's path. Where it is no identifier, torch.fx puts it between double quotes.
PART = r"[\w+:=@,/ ()<>-]+"
CONSTANT = re.compile(rf"{PART}(\.{PART})*")
LABEL = re.compile(r"[\w.:/-]+")
LONGEST = 1000  # characters of a name


def identifier(name: Any, what: str) -> str:
    """A name that stands in generated code by itself."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or len(name) > LONGEST:
        raise ValueError(f"{what} is {str(name)[:100]!r}, not a name")
    return name


def constant(name: Any, what: str) -> str:
    """A dotted path that stands in generated code between quotes where it is no identifier."""
    matches(name, CONSTANT, what)
    for part in name.split("."):
        if keyword.iskeyword(part) or part.startswith("__"):
            raise ValueError(f"{what} is {name[:100]!r}, which holds the reserved word {part[:100]!r}")
    return str(name)


def matches(value: Any, pattern: re.Pattern[str], what: str) -> None:
    if not isinstance(value, str) or len(value) > LONGEST or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {str(value)[:100]!r}, not a name")


def is_a(value: Any, kind: type, what: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{what} is {str(value)[:100]!r}, not a {kind.__name__}")


def as_list(value: Any, what: str) -> list[Any]:
    is_a(value, list, what)
    return value  # type: ignore[no-any-return]


def has_keys(value: Any, wanted: set[str], what: str, optional: set[str] | None = None) -> None:
    is_a(value, dict, what)
    for key in wanted:
        value[key]
    if odd := value.keys() - wanted - (optional or set()):
        raise ValueError(f"{what} holds {sorted(odd)[0][:100]!r}, which is unknown")
