"""What packages of others add: objects named by entry points in their metadata.

Looking for names reads metadata alone; an object is imported when it is asked for.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from graphopt.utils.errors import InputError


def names(group: str) -> list[str]:
    """The names that installed packages have in a group such as `graphopt.targets`."""
    return sorted({entry.name for entry in metadata.entry_points(group=group)})


def version(group: str, name: str) -> str:
    """The version of the package that has an object of this name; empty where none has."""
    return next((e.dist.version for e in metadata.entry_points(group=group, name=name) if e.dist is not None), "")


def find(group: str, name: str, kind: type) -> Any:
    """The object of this name, or None where no package has one.

    Raises:
        InputError: it cannot be imported, is not a `kind`, or two packages have one.
    """
    found = list(metadata.entry_points(group=group, name=name))
    if not found:
        return None
    if len(found) > 1:
        places = ", ".join(entry.value for entry in found)
        raise InputError(f"several packages have a {kind.__name__} named {name!r} ({places}); uninstall all but one")
    try:
        value = found[0].load()
    except Exception as error:
        raise InputError(
            f"{found[0].value}, the {kind.__name__} named {name!r}, cannot be imported: {error}"
        ) from error
    if not isinstance(value, kind):
        raise InputError(f"{found[0].value} is a {type(value).__name__}, not a {kind.__name__}")
    return value
