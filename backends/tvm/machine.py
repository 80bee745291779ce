"""What the schedules know about a processor: the width and number of its vectors, its caches, its 8-bit dot product.

    machine(tvm.target.Target(PROFILES["cortex-a76"].target()))
    processor(tvm.target.Target({"kind": "cuda", "arch": "sm_87"}))     the same, or a `Gpu`
    host()

Instruction sets are read from LLVM's table of CPUs and the target's `mattr`; caches from `PROFILES`, for the machine at hand from
the system. An unknown CPU gets small caches, which cost little where they are larger.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

Dot = Literal["vnni", "sdot", "madd", "smlad", "none"]
Counts = Literal["words", "bytes"]
Lookup = Literal["permute", "shuffle", "select", "none"]


@dataclass(frozen=True)
class Machine:
    """A processor.

    Attributes:
        vector_bytes, vector_registers: of the widest registers the kernels use; 4 bytes stand for no vectors.
        l1_bytes, l2_bytes: of data cache, per core.
        cores: that a kernel may use; 1 makes kernels that need no threads.
        by_element: instructions multiply by one element of a vector, so that data is best loaded by the vector (NEON).
        memory_operands: instructions multiply by what they read from memory (x86), so that reading costs little.
        dot: the instruction for sums of 8-bit products: `vpdpbusd` (u8 x s8), `sdot` (s8 x s8), `pmaddwd` (s16 x s16),
            `smlad` (two s16 x s16 in general registers, Cortex-M with DSP instructions), or none.
        packs: instructions narrow two vectors to one of half the width, saturating (x86).
        lookup: the instruction for tables of bytes: `vpermi2b`, `pshufb`, `tbl`, or none.
        counts: how set bits are counted best: in 32-bit words (`vpopcntd`, or no vectors) or in bytes (`cnt`, `pshufb`).
        prefetches: weights that do not stay in the cache are asked for ahead. Measured on x86 alone.
    """

    vector_bytes: int
    vector_registers: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 256 << 10
    cores: int = 1
    dot: Dot = "none"
    by_element: bool = False
    memory_operands: bool = False
    packs: bool = False
    lookup: Lookup = "none"
    prefetches: bool = False
    counts: Counts = "bytes"

    def lanes(self, dtype: str) -> int:
        """Elements of a type in one vector."""
        return max(1, 8 * self.vector_bytes // int("".join(filter(str.isdigit, dtype)) or 8))  # "bool" has 8 bits

    @property
    def looks_up(self) -> bool:
        """Whether a table is best looked up where codes are computed: in few instructions, which leave a tile its registers.

        `pshufb` takes 63 for 32 codes. On AVX2 they cost a convolution 0.3 ns a code, and a kernel of their own 0.2.
        """
        return self.lookup in ("permute", "select")


@dataclass(frozen=True)
class Gpu:
    """A processor of many threads, for which every thread computes elements one by one.

    Attributes:
        language: that its kernels are written in.
        threads: of a block (OpenCL: of a work group) at most.
        shared_bytes: of memory that a block's threads share.
        multiprocessors: there should be at least so many blocks.
        dot: `dp4a` adds four 8-bit products; else they are multiplied one by one.
    """

    language: Literal["cuda", "opencl"]
    threads: int = 256
    shared_bytes: int = 32 << 10
    multiprocessors: int = 4
    dot: Literal["dp4a", "none"] = "none"
    looks_up: ClassVar[bool] = True

    def lanes(self, dtype: str) -> int:
        """Elements of a type that a thread computes at once."""
        return 1


Processor = Machine | Gpu


@dataclass(frozen=True)
class Profile:
    """A CPU to compile for: what LLVM calls it, and the caches LLVM does not know."""

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    l1_bytes: int = 32 << 10
    l2_bytes: int = 256 << 10
    cores: int = 4

    def target(self) -> dict[str, Any]:
        """The argument of tvm.target.Target."""
        described: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        return described | ({"mattr": list(self.features)} if self.features else {})


PROFILES = {
    "cortex-a53": Profile("aarch64-linux-gnu", "cortex-a53", l2_bytes=128 << 10),  # 512 KB among four cores
    "cortex-a72": Profile("aarch64-linux-gnu", "cortex-a72", l2_bytes=256 << 10),  # 1 MB among four
    "cortex-a76": Profile("aarch64-linux-gnu", "cortex-a76", l1_bytes=64 << 10, l2_bytes=512 << 10),
    "neoverse-n1": Profile("aarch64-linux-gnu", "neoverse-n1", l1_bytes=64 << 10, l2_bytes=1 << 20),
    "apple-m1": Profile("arm64-apple-macos", "apple-m1", l1_bytes=128 << 10, l2_bytes=3 << 20),  # 12 MB among four
    "armv7": Profile("armv7a-linux-gnueabihf", "cortex-a7", ("+neon",), l2_bytes=128 << 10),
    "riscv64": Profile("riscv64-linux-gnu", "generic-rv64", ("+m", "+a", "+f", "+d", "+c"), l2_bytes=128 << 10),
    "x86-64-v2": Profile("x86_64-linux-gnu", "x86-64-v2"),
    "x86-64-v3": Profile("x86_64-linux-gnu", "x86-64-v3"),
    "x86-64-v4": Profile("x86_64-linux-gnu", "x86-64-v4", l2_bytes=1 << 20),
}


GPUS = {
    "cuda": Gpu("cuda", shared_bytes=48 << 10, multiprocessors=16, dot="dp4a"),  # dp4a: from sm_61 on
    "opencl": Gpu("opencl"),
}


def processor(target: Any) -> Processor:
    """For a tvm.target.Target.

    Raises:
        ValueError: it is neither a CPU nor a GPU with CUDA or OpenCL.
    """
    return GPUS[str(target.kind)] if str(target.kind) in GPUS else machine(target)


def machine(target: Any) -> Machine:
    """For a tvm.target.Target.

    Raises:
        ValueError: it is no CPU.
    """
    from tvm.target import codegen

    if str(target.kind) != "llvm":
        raise ValueError(f"these kernels are for CPUs, targets of kind 'llvm'; {target.kind!s} is none")
    cpu, triple = str(target.attrs.get("mcpu", "")), str(target.attrs.get("mtriple", ""))
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target)}
    at_hand = cpu == str(codegen.llvm_get_system_cpu()) and _architecture(triple) == _architecture(_system_triple())
    known = PROFILES.get(cpu) or next((p for p in PROFILES.values() if p.cpu == cpu), None)
    if at_hand:
        caches = (_cache(1, 32 << 10), _cache(2, 256 << 10), os.cpu_count() or 1)
    elif known:
        caches = (known.l1_bytes, known.l2_bytes, known.cores)
    else:
        caches = (32 << 10, 256 << 10, 4)
    architecture = _architecture(triple)
    vector_bytes, registers, dot = _vectors(architecture, features)
    x86 = architecture == "x86_64"
    lookup = _lookup(architecture, features)
    counts: Counts = "words" if vector_bytes == 4 or "avx512vpopcntdq" in features else "bytes"
    return Machine(vector_bytes, registers, *caches, dot, architecture == "aarch64", x86, x86, lookup, x86, counts)


def host() -> Any:
    """The target of the machine at hand."""
    import tvm
    from tvm.target import codegen

    return tvm.target.Target({"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())})


def _vectors(architecture: str, features: set[str]) -> tuple[int, int, Dot]:
    """(bytes, registers, dot product)."""
    if architecture == "x86_64":
        if {"avx512f", "avx512bw", "avx512vl"} <= features:
            return 64, 32, "vnni" if "avx512vnni" in features else "madd"
        if "avx2" in features:
            return 32, 16, "vnni" if "avxvnni" in features else "madd"
        return 16, 16, "madd"
    if architecture == "aarch64":
        return 16, 32, "sdot" if "dotprod" in features else "none"
    if architecture == "arm":
        scalar: Dot = "smlad" if {"mclass", "dsp"} <= features else "none"
        return (16, 16, "none") if "neon" in features else (4, 16, scalar)
    if architecture == "riscv64":
        return (16, 32, "none") if "v" in features else (4, 32, "none")
    return 16, 16, "none"


def _lookup(architecture: str, features: set[str]) -> Lookup:
    if architecture == "x86_64":
        return "permute" if {"avx512bw", "avx512vbmi"} <= features else "shuffle" if "ssse3" in features else "none"
    return "select" if architecture == "aarch64" else "none"


def _architecture(triple: str) -> str:
    name = (triple or _system_triple()).partition("-")[0]
    if name in ("arm64", "aarch64"):
        return "aarch64"
    return "arm" if name.startswith(("arm", "thumb")) else "x86_64" if name in ("x86_64", "amd64") else name


def _system_triple() -> str:
    from tvm.target import codegen

    return str(codegen.llvm_get_system_triple())


def _cache(level: int, otherwise: int) -> int:
    """Bytes of a core's data cache."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, size = (folder / "type").read_text().strip(), (folder / "size").read_text().strip()
            if (folder / "level").read_text().strip() == str(level) and kind != "Instruction":
                return int(size.rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return otherwise
