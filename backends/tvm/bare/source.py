"""The C around the kernels: a header with one function, and the source that calls them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from graphopt.artifacts.manifest import TensorSpec
from graphopt.backends.tvm.bare.calls import Calls, Slot
from graphopt.backends.tvm.bare.workspace import ALIGNMENT, Workspace

TYPES = {
    "float64": "double",
    "float32": "float",
    "float16": "uint16_t",  # its bits: C99 has no such type
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
}


@dataclass(frozen=True)
class Source:
    """What is to be written down.

    Attributes:
        prefix: of every name.
        title: a sentence about the model.
        inputs, outputs: with fixed sizes.
        constants: offset of each in the weights.
        scratch: how many temporaries each kernel takes.
    """

    prefix: str
    title: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    calls: Calls
    workspace: Workspace
    constants: Sequence[int]
    scratch: Mapping[str, Sequence[int]]

    @property
    def signature(self) -> str:
        given = [f"const {TYPES[spec.dtype]} *input{i}" for i, spec in enumerate(self.inputs)]
        taken = [f"{TYPES[spec.dtype]} *output{i}" for i, spec in enumerate(self.outputs)]
        return f"int {self.prefix}_run({', '.join([*given, *taken, 'void *workspace'])})"

    def header(self) -> str:
        upper = self.prefix.upper()
        sizes = []
        for kind, specs in (("INPUT", self.inputs), ("OUTPUT", self.outputs)):
            for number, spec in enumerate(specs):
                name = f"{upper}_{kind}{number}"
                sizes += [
                    f"/* {spec} */".replace("*/", "* /", str(spec).count("*/")),
                    f"#define {name}_SHAPE {{{', '.join(map(str, spec.shape))}}}",
                    f"#define {name}_ELEMENTS {_elements(spec)}",
                ]
        return "\n".join(
            [
                f"/* {self.title}",
                " *",
                f" *     static _Alignas({upper}_WORKSPACE_ALIGNMENT) unsigned char workspace[{upper}_WORKSPACE_BYTES];",
                f" *     {self.prefix}_run(..., workspace);",
                " *",
                " * It needs no heap and keeps nothing between calls. Calls at the same time need a workspace each.",
                " * Tensors are dense, the last dimension innermost, and must not overlap. */",
                f"#ifndef {upper}_H",
                f"#define {upper}_H",
                "",
                "#include <stdint.h>",
                "",
                f"#define {upper}_WORKSPACE_BYTES {max(self.workspace.bytes, 1)}",
                f"#define {upper}_WORKSPACE_ALIGNMENT {ALIGNMENT}",
                "",
                *sizes,
                "",
                "#ifdef __cplusplus",
                'extern "C" {',
                "#endif",
                "",
                "/* Computes the outputs. Returns 0, or 1 where the workspace is missing or not aligned. */",
                f"{self.signature};",
                "",
                "#ifdef __cplusplus",
                "}",
                "#endif",
                "",
                "#endif",
                "",
            ]
        )

    def body(self) -> str:
        lines = [
            f"/* {self.title} */",
            f'#include "{self.prefix}.h"',
            "",
            *(["#include <string.h>", ""] if self.calls.copies else []),
            f"extern const unsigned char {self.prefix}_weights[]; /* in {self.prefix}_weights.o */",
            "",
            f"/* in {self.prefix}_kernels.o */",
            *self.prototypes(),
            "",
            f"{self.signature} {{",
            "  unsigned char *const memory = workspace;",
            f"  if (!memory || (uintptr_t)memory % {self.prefix.upper()}_WORKSPACE_ALIGNMENT) return 1;",
        ]
        for call, scratch in zip(self.calls.calls, self.workspace.scratch, strict=True):
            places = [self.at(place) for place in (*call.reads, *call.writes)]
            arguments = [*places, *(f"memory + {offset}" for offset in scratch)]
            lines.append(f"  {self.prefix}_{call.kernel}({', '.join(arguments)});")
        for number, place in self.calls.copies:
            size = f"{self.prefix.upper()}_OUTPUT{number}_ELEMENTS * sizeof *output{number}"
            lines.append(f"  memcpy(output{number}, {self.at(place)}, {size});")
        return "\n".join([*lines, "  return 0;", "}", ""])

    def prototypes(self) -> list[str]:
        """Of each kernel that is called: what it reads, what it writes, its temporaries."""
        found = {}
        for call in self.calls.calls:
            written = len(call.writes) + len(self.scratch.get(call.kernel, ()))
            parameters = [*["const void *"] * len(call.reads), *["void *"] * written]
            found[call.kernel] = f"void {self.prefix}_{call.kernel}({', '.join(parameters)});"
        return list(found.values())

    def at(self, place: Slot) -> str:
        """A C expression for where it is."""
        if place.kind == "constant":
            return f"{self.prefix}_weights + {self.constants[place.number]}"
        if place.kind == "buffer":
            return f"memory + {self.workspace.offsets[place.number]}"
        return f"{place.kind}{place.number}"


def _elements(spec: TensorSpec) -> int:
    return prod(int(size or 0) for size in spec.shape)
