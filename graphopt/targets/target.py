"""What there is to say about a target, in three parts."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from graphopt.formats import NumberFormat, to_json
from graphopt.targets.energy import Energy
from graphopt.targets.kernels import Kernels
from graphopt.targets.number_formats import Formats, Kind
from graphopt.targets.runtime import CodeGeneration, Runtime
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Target:
    """Hardware and runtime as facts.

    Attributes:
        name: by which it is found and reported.
        description: the hardware and how models get there, in one line.
        formats: number formats of weights, activations and biases.
        runtime: what runs the model, and where.
        kernels: which operators compute in integer, and what they require.
        energy: of operations and accesses, by which `budget={"energy": ...}` compares networks.
        source: where these facts come from: a measurement, or the title of a document.
    """

    name: str
    description: str
    formats: Formats
    runtime: Runtime
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    source: str = "measured on the runtime"
    energy: Energy = dataclasses.field(default_factory=Energy)

    def __post_init__(self) -> None:
        for name, part in (("formats", Formats), ("runtime", Runtime), ("kernels", Kernels), ("energy", Energy)):
            if not isinstance(getattr(self, name), part):
                raise InputError(f"target {self.name!r}: {name} must be a {part.__name__}, got {getattr(self, name)!r}")

    def replace(self, **changes: Any) -> Target:
        """A copy with other values in some fields, those of its parts included: `find("arm").replace(weights=Format(4))`.

        `name` is the target's; another runtime is `replace(runtime=Runtime(...))`.

        Raises:
            InputError: no part has such a field (suggests the nearest), or the new target is impossible.
        """
        own = {name: changes.pop(name) for name in _names(Target) & changes.keys()}
        for part, kind in (("formats", Formats), ("kernels", Kernels), ("runtime", Runtime)):
            if mine := {name: changes.pop(name) for name in _names(kind) & changes.keys()}:
                own[part] = dataclasses.replace(own.get(part, getattr(self, part)), **mine)
        if code := {name: changes.pop(name) for name in _names(CodeGeneration) & changes.keys()}:
            runtime: Runtime = own.get("runtime", self.runtime)
            own["runtime"] = dataclasses.replace(runtime, code=dataclasses.replace(runtime.generated, **code))
        for name in changes:
            known = set().union(*map(_names, (Target, Formats, Kernels, Runtime, CodeGeneration)))
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"
            raise InputError(f"a target has no {name!r}{hint}")
        return dataclasses.replace(self, **own)

    def takes(self, format: NumberFormat, kind: Kind) -> bool:
        """Whether the hardware computes with weights or activations of this format."""
        return not self.runtime.listed_formats_only or self.formats.takes(format, kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for manifests and reports: a dictionary for each part."""
        found: dict[str, Any] = _plain(self)
        return found


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}


def _plain(value: Any) -> Any:
    if isinstance(value, (Target, Formats, Kernels, Runtime, CodeGeneration, Energy)):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return to_json(value) if is_dataclass(value) else value  # type: ignore[arg-type]
