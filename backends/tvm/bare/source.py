"""The C around the kernels: a header with one function, and the source that calls them in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    def given(self) -> list[str]:
        """The parameters of the function."""
        given = [f"const {TYPES[spec.dtype]} *input{i}" for i, spec in enumerate(self.inputs)]
        taken = [f"{TYPES[spec.dtype]} *output{i}" for i, spec in enumerate(self.outputs)]
        return [*given, *taken, "void *workspace"]

    @property
    def signature(self) -> str:
        return f"int {self.prefix}_run({', '.join(self.given)})"

    # ---- The header -------------------------------------------------------------------------------------------------

    def header(self) -> str:
        upper = self.prefix.upper()
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
                *self.macros(),
                "",
                "#ifdef __cplusplus",
                'extern "C" {',
                "#endif",
                "",
                *self.declarations(),
                "",
                "#ifdef __cplusplus",
                "}",
                "#endif",
                "",
                "#endif",
                "",
            ]
        )

    def macros(self) -> list[str]:
        """Sizes, as the preprocessor knows them."""
        upper = self.prefix.upper()
        sizes = [
            f"#define {upper}_WORKSPACE_BYTES {max(self.workspace.bytes, 1)}",
            f"#define {upper}_WORKSPACE_ALIGNMENT {ALIGNMENT}",
            "",
        ]
        for kind, specs in (("INPUT", self.inputs), ("OUTPUT", self.outputs)):
            for number, spec in enumerate(specs):
                name = f"{upper}_{kind}{number}"
                sizes += [
                    f"/* {spec} */".replace("*/", "* /", str(spec).count("*/")),
                    f"#define {name}_SHAPE {{{', '.join(map(str, spec.shape))}}}",
                    f"#define {name}_ELEMENTS {_elements(spec)}",
                ]
        return sizes

    def declarations(self) -> list[str]:
        """What a program may call."""
        return [
            "/* Computes the outputs. Returns 0, or 1 where the workspace is missing or not aligned. */",
            f"{self.signature};",
        ]

    # ---- The source -------------------------------------------------------------------------------------------------

    def body(self) -> str:
        included = self.includes()
        return "\n".join(
            [
                f"/* {self.title} */",
                f'#include "{self.prefix}.h"',
                "",
                *([*(f"#include {name}" for name in included), ""] if included else []),
                f"extern const unsigned char {self.prefix}_weights[]; /* in {self.prefix}_weights.o */",
                "",
                f"/* in {self.prefix}_kernels.o */",
                *self.prototypes(),
                *self.functions(),
                "",
                *self.bodies(),
            ]
        )

    def includes(self) -> list[str]:
        """Headers of the C library."""
        return ["<string.h>"] if self.calls.copies else []

    def functions(self) -> list[str]:
        """What the function calls beside kernels."""
        return []

    def bodies(self) -> list[str]:
        """The function itself."""
        return [
            f"{self.signature} {{",
            *self.checks(),
            *self.lines(range(len(self.calls.calls))),
            *(self.copy(number, place) for number, place in self.calls.copies),
            "  return 0;",
            "}",
            "",
        ]

    def checks(self, *more: str) -> list[str]:
        """The place of the workspace, refused where it is none, or where one of `more` holds."""
        wrong = ["!memory", f"(uintptr_t)memory % {self.prefix.upper()}_WORKSPACE_ALIGNMENT", *more]
        return ["  unsigned char *const memory = workspace;", f"  if ({' || '.join(wrong)}) return 1;"]

    def lines(self, which: Iterable[int]) -> list[str]:
        """Some of the calls."""
        lines = []
        for number in which:
            call, scratch = self.calls.calls[number], self.workspace.scratch[number]
            places = [self.at(place) for place in (*call.reads, *call.writes)]
            arguments = [*places, *(f"memory + {offset}" for offset in scratch)]
            lines.append(f"  {self.prefix}_{call.kernel}({', '.join(arguments)});")
        return lines

    def copy(self, number: int, place: Slot) -> str:
        """What copies an output that is another's memory."""
        size = f"{self.prefix.upper()}_OUTPUT{number}_ELEMENTS * sizeof *output{number}"
        return f"  memcpy(output{number}, {self.at(place)}, {size});"

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
