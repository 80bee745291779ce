"""Write a model as C and objects into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from graphopt.artifacts.lowered import write_form
from graphopt.artifacts.manifest import Manifest, TensorSpec
from graphopt.artifacts.memory import OBJECTS
from graphopt.backends.tvm.bare.calls import Array, Calls, Slot
from graphopt.backends.tvm.bare.elf import Object, data_object
from graphopt.backends.tvm.bare.fullest import fullest
from graphopt.backends.tvm.bare.kernels import compile_kernels
from graphopt.backends.tvm.bare.source import TYPES, Source
from graphopt.backends.tvm.bare.staged_source import StagedSource
from graphopt.backends.tvm.bare.stages import Stages
from graphopt.backends.tvm.bare.workspace import ALIGNMENT, arranged
from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.profiling import SITES
from graphopt.policies import Policy
from graphopt.utils.errors import InputError
from graphopt.utils.version import __version__

MATHEMATICS = frozenset(
    f"{name}{suffix}"
    for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh", "erf", "erfc",
        "exp", "exp2", "expm1", "fabs", "floor", "fma", "fmax", "fmin", "fmod", "hypot", "ldexp", "log", "log10", "log1p", "log2",
        "nearbyint", "nextafter", "pow", "rint", "round", "roundeven", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
    )
    for suffix in ("", "f")
)  # fmt: skip
MEMORY = frozenset({"memcpy", "memmove", "memset"})


def compile_objects(calls: Calls, manifest: Manifest, folder: str | Path, prefix: str = "model") -> Path:
    """Write a folder, whole or not at all, with a manifest; return its absolute path.

    Raises:
        InputError: the place cannot be written, `prefix` cannot begin names of C, or the model needs TVM's runtime.
    """
    return write_form(manifest, folder, OBJECTS, lambda new: write_objects(calls, manifest, new, prefix))


def write_objects(calls: Calls, manifest: Manifest, folder: Path, prefix: str = "model") -> dict[str, Any]:
    """Write header, source and objects; what is to be known of them.

    Returns:
        prefix; the bytes of code (with constants of its own), of weights and of the workspace; and what lies there when it is
        fullest, see `Fullest`.

    Raises:
        InputError: `prefix` cannot begin names of C, or the model needs TVM's runtime.
    """
    sites = [(kernel, site) for kernel, site in manifest.options.get(SITES, [])]
    return _written(calls, manifest, folder, prefix, sites, (), Source)


def write_stages(stages: Stages, policy: Policy, manifest: Manifest, folder: Path, prefix: str) -> dict[str, Any]:
    """The same of stages, which answer as soon as one is sure; and how many they are."""
    source = partial(StagedSource, stages=stages, policy=policy)
    facts = _written(stages.calls, manifest, folder, prefix, stages.sites, stages.kept, source)
    return facts | {"stages": len(stages.ends)}


def _written(
    calls: Calls, manifest: Manifest, folder: Path, prefix: str, sites: Sequence[tuple[str, str]],
    kept: Sequence[tuple[Slot, int]], source_of: Callable[..., Source],
) -> dict[str, Any]:  # fmt: skip
    check_prefix(prefix)
    code, batch = Code.from_dict(manifest.options["code"]), manifest.options["batch"]
    inputs, outputs = (_fixed(specs, batch) for specs in (manifest.inputs, manifest.outputs))
    scratch, over = compile_kernels(calls.kernels, code, prefix, folder / f"{prefix}_kernels.o")
    kernels = Object((folder / f"{prefix}_kernels.o").read_bytes())
    if foreign := [name for name in kernels.undefined() if not _has_c(name)]:
        raise InputError(
            f"the kernels call {', '.join(foreign)}, which is neither the C library's nor the compiler's; leave the operator "
            "that needs it out of the model, or deploy the artifact as it is"
        )
    weights, offsets = _packed(calls.constants)
    workspace = arranged(calls, scratch, over, kept)
    most = fullest(calls, workspace.regions, sites)
    title = f"{manifest.model} for {code}, written by graphopt {__version__}.".replace("*/", "* /")
    source = source_of(prefix, title, inputs, outputs, calls, workspace, offsets, scratch)
    (folder / f"{prefix}_weights.o").write_bytes(data_object(f"{prefix}_weights", weights, ALIGNMENT, kernels))
    (folder / f"{prefix}.h").write_text(source.header())
    (folder / f"{prefix}.c").write_text(source.body())
    return {
        "prefix": prefix,
        "code_bytes": kernels.loaded_bytes,
        "weight_bytes": len(weights),
        "workspace_bytes": workspace.bytes,
        "fullest": None if most is None else most._asdict(),
    }


def check_prefix(prefix: str) -> None:
    """Raises InputError where names of C cannot begin with it."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", prefix):
        raise InputError(f"names in C are to begin with {prefix!r}; give small letters, digits and _, such as 'model'")


def _has_c(symbol: str) -> bool:
    """The C library has it, or every C compiler brings it along (`__divdi3`, `__aeabi_f2h`)."""
    return symbol in MATHEMATICS | MEMORY or symbol.startswith("__") or symbol == "_GLOBAL_OFFSET_TABLE_"


def _fixed(specs: Sequence[TensorSpec], batch: int | None) -> list[TensorSpec]:
    for spec in specs:
        if spec.dtype not in TYPES:
            raise InputError(f"{spec.name!r} is {spec.dtype}, which has no type in C; cast it in the model")
    return [replace(s, shape=tuple(batch if size is None else size for size in s.shape)) for s in specs]


def _packed(constants: Sequence[Array]) -> tuple[bytes, list[int]]:
    """All of them aligned in one row, equal ones once; and where each begins."""
    row, places, offsets = bytearray(), dict[bytes, int](), []
    for constant in constants:
        content = constant.tobytes()
        if content not in places:
            row += bytes(-len(row) % ALIGNMENT)
            places[content] = len(row)
            row += content
        offsets.append(places[content])
    return bytes(row), offsets
