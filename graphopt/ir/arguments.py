"""The arguments of an operator by their names in its schema, with a record of which ones were read.

Code that translates an operator answers wrongly where it overlooks an argument, so `require_all_read` asks behind every rule:

    arguments = Arguments(node)
    value = rule(arguments)                        # reads arguments["self"], arguments["alpha"], ...
    arguments.require_all_read(site, "TVM")        # InputError where one that was given was not read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.ir.calls import bound, positions
from graphopt.utils.errors import InputError


class Arguments:
    """What a call is given, defaults filled in.

    Attributes:
        node: the call. target: its operator.
    """

    target: Any

    def __init__(self, node: Node) -> None:
        """Raises InputError where the call is of no ATen operator, which alone have a schema."""
        if getattr(node.target, "_schema", None) is None:
            raise InputError(f"{node.target} (node {node.name}) has no schema, by which arguments have names")
        self.node, self.target = node, node.target
        self._defaults = {name: default for name, (_, default) in positions(node.target).items()}
        self._values = bound(node)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """Raises KeyError where the schema has no such argument."""
        self._read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """The names in the schema's order."""
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, otherwise: Any = None) -> Any:
        """An argument that only some variants of the operator have."""
        self._read.add(name)
        return self._values.get(name, otherwise)

    def ignore(self, *names: str) -> None:
        """These, as far as the schema has them, change no value: they matter for gradients or memory alone."""
        self._read.update(names)

    def ignore_sizes(self) -> None:
        """Nothing but sizes follows from any argument, and the call's shape is known."""
        self._read.update(self._values)

    @property
    def given(self) -> Mapping[str, Any]:
        """All of them, to look at; that reads none."""
        return MappingProxyType(self._values)

    @property
    def unread(self) -> dict[str, Any]:
        """Arguments that were not read, with a value that is not the schema's default."""
        return {
            name: value
            for name, value in self._values.items()
            if name not in self._read and not _equal(value, self._defaults[name])
        }

    def require_all_read(self, site: str, backend: str) -> None:
        """Raises InputError where an argument was given but not read; names operator, argument, value and layer."""
        for name, value in self.unread.items():
            raise InputError(
                f"{site}: the {backend} backend does not compute {self.node.target} with {name}={value!r} "
                f"(node {self.node.name}); leave the argument at its default ({self._defaults[name]!r}), or leave this part "
                "out of the model"
            )


def _equal(value: Any, default: Any) -> bool:
    if isinstance(value, (Node, torch.Tensor)) or isinstance(default, (Node, torch.Tensor)):
        return value is default
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return (type(value) is type(default) and bool(value == default)) or (
        not isinstance(value, bool) and value == default
    )
