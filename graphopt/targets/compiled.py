"""CPUs through TVM: machine code, compiled ahead of time."""

from __future__ import annotations

from graphopt.formats import FLOAT16, Format
from graphopt.targets.cpus import SIGNED_WEIGHTS
from graphopt.targets.families import TVM_INTEGER
from graphopt.targets.kernels import Kernels
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import CodeGeneration, Runtime
from graphopt.targets.target import Target

TVM_KERNELS = Kernels(integer=TVM_INTEGER, tables=True, channel_multiple=16, decompose=frozenset())


def _tvm(name: str, description: str, architecture: str, triple: str = "", cpu: str = "", *features: str) -> Target:
    """A target of TVM; kernels multiply u8 by s8 on x86, s8 by s8 elsewhere."""
    return Target(
        name=name,
        description=f"{description} through TVM: compiled ahead of time",
        formats=Formats(SIGNED_WEIGHTS, activations=Format(bits=8, signed=architecture != "x86_64", symmetric=False)),
        runtime=Runtime("tvm", architecture, code=CodeGeneration(triple, cpu, features)),
        kernels=TVM_KERNELS,
    )


_ARM64 = {
    "cortex-a53": "in-order 64-bit ARM cores (Raspberry Pi 3)",
    "cortex-a72": "64-bit ARM cores (Raspberry Pi 4)",
    "cortex-a76": "64-bit ARM cores with dot products (Raspberry Pi 5, phones)",
    "neoverse-n1": "64-bit ARM servers (Graviton 2, Ampere Altra)",
}
_MICROCONTROLLERS = {
    "cortex-m4": ("Cortex-M4F microcontrollers", "armv7e-m", "thumbv7em-none-eabihf"),
    "cortex-m7": ("Cortex-M7 microcontrollers", "armv7e-m", "thumbv7em-none-eabihf"),
    "cortex-m33": ("Cortex-M33 microcontrollers", "armv8-m.main", "thumbv8m.main-none-eabihf"),
}
_COMPILED = [
    _tvm("tvm-x86", "the x86-64 CPU at hand", "x86_64"),
    _tvm("tvm-arm64", "any 64-bit ARM CPU", "aarch64", "aarch64-linux-gnu", "generic"),
    *(_tvm(f"tvm-{cpu}", text, "aarch64", "aarch64-linux-gnu", cpu) for cpu, text in _ARM64.items()),
    _tvm(
        "tvm-apple-m1", "Apple M1 and later, macOS", "aarch64", "arm64-apple-macos", "apple-a14"
    ),  # LLVM's name of its cores
    _tvm(
        "tvm-armv7", "32-bit ARM CPUs with NEON (Cortex-A7)", "armv7l", "armv7a-linux-gnueabihf", "cortex-a7", "+neon"
    ),
    _tvm(
        "tvm-riscv64",
        "64-bit RISC-V CPUs",
        "riscv64",
        "riscv64-linux-gnu",
        "generic-rv64",
        "+m",
        "+a",
        "+f",
        "+d",
        "+c",
    ),
    *(
        _tvm(f"tvm-{cpu}", f"{text}, as C and objects without an operating system,", architecture, triple, cpu)
        for cpu, (text, architecture, triple) in _MICROCONTROLLERS.items()
    ),
]
_HALF = next(target for target in _COMPILED if target.name == "tvm-cortex-a76").replace(
    name="tvm-cortex-a76-fp16",
    description="64-bit ARM cores with float16 (Raspberry Pi 5, phones) through TVM: float16 in memory, sums in float32",
    weights=FLOAT16,
    activations=FLOAT16,
    features=("+fullfp16",),
)
COMPILED = {target.name: target for target in (*_COMPILED, _HALF)}
