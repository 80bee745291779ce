"""Modules that are imported when something of them is first used: PyTorch takes seconds, and plain data should be there at once.

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> ModuleType:
    """A module by its full name, imported by the first look at an attribute."""
    return _Lazy(name)
