"""Find a Python object by the name `package.module:attribute`, as the command line takes models and functions; or in a file.

Either runs the module: the name comes from whoever gives the command, never from a file that was read.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from pathlib import Path
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
    return _attribute(value, path, module_name)


def find_in_file(path: Path, name: str) -> Any:
    """Run a file of Python, beside whose modules it may import, and return what it calls `name`.

    Raises:
        InputError: there is no such file, or nothing of this name in it (with the nearest name).
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    specification = importlib.util.spec_from_file_location(f"_file_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return _attribute(module, name, str(path))


def _attribute(value: Any, path: str, where: str) -> Any:
    for part in path.split("."):
        if not hasattr(value, part):
            close = get_close_matches(part, [n for n in dir(value) if not n.startswith("_")], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{where} has no {part!r}{hint}")
        value = getattr(value, part)
    return value
