"""A program in C around a model compiled to objects: inputs from files, outputs to one, on this machine or under an emulator."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.backends.tvm.bare.source import TYPES
from graphopt.utils.files import MANIFEST

Arrays = list[np.ndarray[Any, Any]]
# their instructions are among those of larger CPUs
_MICROCONTROLLER = ("arm-linux-gnueabihf-gcc", "arm-linux-musleabihf -mcpu=cortex_a7", ("qemu-arm", "-cpu", "max"))
EMULATED = {  # target -> (compiler, what zig calls the machine, qemu)
    "tvm-cortex-a53": ("aarch64-linux-gnu-gcc", "aarch64-linux-musl", ("qemu-aarch64", "-cpu", "cortex-a53")),
    "tvm-cortex-a76": ("aarch64-linux-gnu-gcc", "aarch64-linux-musl", ("qemu-aarch64", "-cpu", "cortex-a76")),
    "tvm-armv7": ("arm-linux-gnueabihf-gcc", "arm-linux-musleabihf -mcpu=cortex_a7", ("qemu-arm", "-cpu", "cortex-a7")),
    **dict.fromkeys(("tvm-cortex-m4", "tvm-cortex-m7", "tvm-cortex-m33"), _MICROCONTROLLER),
    "tvm-riscv64": ("riscv64-linux-gnu-gcc", "riscv64-linux-musl", ("qemu-riscv64",)),
}
STRICT = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
MAIN = """
#include <stdio.h>
#include <stdlib.h>
{includes}
{memory}

int main(int count, char **arguments) {{
  FILE *files[{inputs}], *answers = fopen(arguments[1], "wb");
  (void)count;
{opens}
  for (long call = strtol(arguments[2], 0, 10); call > 0; --call) {{
{reads}
    {run}
{writes}
  }}
  return fclose(answers);
}}
"""


def cross(name: str) -> tuple[list[str], tuple[str, ...]]:
    """A compiler for programs that stand alone, and the emulator; skips where either is missing."""
    gcc, triple, emulator = EMULATED[name]
    if shutil.which(emulator[0]) is None:
        pytest.skip("needs qemu's user mode: apt-get install qemu-user")
    if shutil.which(gcc):
        return [gcc, "-static"], emulator
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-static", "-target", *triple.split()], emulator
    pytest.skip(f"needs a compiler: apt-get install gcc-{gcc.removesuffix('-gcc')}, or pip install ziglang")


def program(
    folder: Path, compiler: Sequence[str] = ("gcc",), out: Path | None = None, last_stage: int | None = None
) -> Path:
    """Compile and link one for the model in a folder. It is given inputs one element behind an aligned address, which must do.

    Of a model of stages it also writes which one answered; `last_stage`: none behind it runs.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    prefix = manifest["options"]["objects"]["prefix"]
    upper = prefix.upper()
    memory = [f"static _Alignas({upper}_WORKSPACE_ALIGNMENT) unsigned char workspace[{upper}_WORKSPACE_BYTES];"]
    names: dict[str, list[str]] = {"inputs": [], "outputs": []}
    for kind in names:
        for number, spec in enumerate(manifest[kind]):
            name = f"{kind[:-1]}{number}"
            memory.append(f"static _Alignas(64) {TYPES[spec['dtype']]} {name}[{upper}_{name.upper()}_ELEMENTS + 1];")
            names[kind].append(name)
    lines = {
        "opens": [f'  files[{i}] = fopen(arguments[{i + 3}], "rb");' for i in range(len(names["inputs"]))],
        "reads": [
            f"    if (fread({n} + 1, sizeof *{n}, {upper}_{n.upper()}_ELEMENTS, files[{i}]) == 0) return 2;"
            for i, n in enumerate(names["inputs"])
        ],
        "writes": [
            f"    fwrite({n} + 1, sizeof *{n}, {upper}_{n.upper()}_ELEMENTS, answers);" for n in names["outputs"]
        ],
    }
    staged = "stages" in manifest["options"]["objects"]
    if staged:
        memory.append("static int stage[2];")
        lines["writes"].append("    fwrite(stage + 1, sizeof *stage, 1, answers);")
    told, until = ["stage + 1"] if staged else [], [] if last_stage is None else [str(last_stage)]
    arguments = ", ".join([*(f"{n} + 1" for kind in names.values() for n in kind), *told, "workspace", *until])
    out = out or folder.with_name(folder.name + "_program")
    source = out.with_suffix(".c")
    text = {"includes": f'#include "{prefix}.h"', "memory": "\n".join(memory), "inputs": len(names["inputs"])}
    text |= {
        "run": f"if ({prefix}_run{'_until' if until else ''}({arguments})) return 3;",
        **{key: "\n".join(rows) for key, rows in lines.items()},
    }
    source.write_text(MAIN.format(**text))
    objects = [_of_any_profile(folder / f"{prefix}{end}.o", compiler, out) for end in ("_kernels", "_weights")]
    code = [source, folder / f"{prefix}.c", *objects]
    subprocess.run([*compiler, *STRICT, f"-I{folder}", *code, "-o", out, "-lm"], check=True)
    return out


def _of_any_profile(code: Path, compiler: Sequence[str], out: Path) -> Path:
    """An object that GNU's linker for 32-bit ARM takes: by this note it refuses those for microcontrollers beside Linux's."""
    if not compiler[0].startswith("arm-linux"):
        return code
    objcopy, bare = compiler[0].removesuffix("gcc") + "objcopy", out.with_name(f"{out.name}_{code.name}")
    subprocess.run([objcopy, "--remove-section=.ARM.attributes", code, bare], check=True)
    return bare


def answers(
    program: Path, folder: Path, inputs: Arrays, batch: int | None = None, emulator: Sequence[str] = ()
) -> Arrays:
    """What it answers, call by call, to inputs of whole batches; behind it, of stages, which one answered each."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if "stages" in manifest["options"]["objects"]:
        manifest["outputs"].append({"dtype": "int32", "shape": [None]})
    size = batch or len(inputs[0])
    files = [program.with_name(f"input{i}") for i in range(len(inputs))]
    for file, array in zip(files, inputs, strict=True):
        array.tofile(file)
    output, calls = program.with_name("answers"), len(inputs[0]) // size
    subprocess.run([*emulator, program, output, str(calls), *files], check=True)
    shapes = [tuple(size if s is None else s for s in spec["shape"]) for spec in manifest["outputs"]]
    bytes_of = [prod(s) * np.dtype(o["dtype"]).itemsize for s, o in zip(shapes, manifest["outputs"], strict=True)]
    row = np.fromfile(output, np.uint8).reshape(calls, sum(bytes_of))
    parts = np.split(row, np.cumsum(bytes_of)[:-1], axis=1)
    return [
        np.ascontiguousarray(part).view(spec["dtype"]).reshape(calls * shape[0], *shape[1:])
        for part, spec, shape in zip(parts, manifest["outputs"], shapes, strict=True)
    ]
