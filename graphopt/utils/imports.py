"""Find a Python object by the name `package.module:attribute`, as the command line takes models and functions."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from typing import Any

from graphopt.utils.errors import InputError


def find(name: str) -> Any:
    """Import `package.module:attribute`; the current folder is searched first, like `python -m` does.

    Raises:
        InputError: the name has another form, or the module or attribute does not exist (with the nearest name).
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InputError(f"{name!r} is not of the form package.module:attribute, e.g. mypackage.models:make_model")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InputError(f"{module_name} needs the module {error.name!r}, which is not installed") from error
        raise InputError(f"there is no module {error.name!r} here or among the installed packages ({name})") from error
    for part in path.split("."):
        if not hasattr(value, part):
            close = get_close_matches(part, [n for n in dir(value) if not n.startswith("_")], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{module_name} has no {part!r}{hint}")
        value = getattr(value, part)
    return value
