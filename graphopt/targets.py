"""Targets: what a piece of hardware and its runtime can do, as plain data.

A target decides number formats, where quantizers go and how the graph is lowered. Users may pass a `Target` of their own
(`dataclasses.replace(find("arm"), ...)`) wherever a name is accepted.
"""

from __future__ import annotations

import difflib
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from graphopt.errors import InputError
from graphopt.numerics import Format

# Families of graphopt.ops that have integer kernels in ONNX Runtime's CPU provider (measured on 1.31, opset 18-21).
# Convolution and linear layers start an integer region, the others join one.
_ONNXRUNTIME_INTEGER = frozenset(
    {
        "conv", "linear", "add", "mul", "concat", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax", "average_pool",
        "global_average_pool",
    }
)  # fmt: skip
# Kernels that move 8-bit codes as they are: output and input share one grid.
_ONNXRUNTIME_MOVES = frozenset(
    {
        "max_pool",
        "reshape",
        "transpose",
        "slice",
        "split",
        "getitem",
        "pad",
        "resize_nearest",
        "expand",
        "identity",
        "shuffle",
    }
)


@dataclass(frozen=True)
class Target:
    """Hardware and runtime as facts.

    Attributes:
        name, description: how it is called and what it is.
        runtime: the backend that lowers for it; see `graphopt.runtimes`.
        architecture: `platform.machine()` of the hardware, for telling whether a latency can be measured here.
        weights, activations: number formats of the integer kernels.
        weight_bits, activation_bits: the bits those kernels take: fewer are stored in the same integers, and take the same time.
        float_layers: single layers may be left in float.
        integer: operator families computed in integer.
        moves: families that pass integer codes through unchanged, so that input and output share one grid.
        shares: families whose inputs and output must have one grid.
        float_output: families that may leave the integer region without a quantizer behind them.
        channel_multiple: channel counts the kernels like, in channels.
        depthwise_norm: a batch norm without a layer to fold into is fastest as a depthwise convolution.
        decompose: activations to be written as operators the integer kernels know (of `hard_swish` and `silu`).
        block_products: what weights in blocks are multiplied with: `int8`, values rounded block by block at run time, or
            `float32`, exactly what the simulated graph computes but slow where the kernels unpack (2 and 8 bits).
        triple, cpu, features: what a compiling runtime generates code for, in LLVM's words ("aarch64-linux-gnu", "cortex-a76",
            ("+dotprod",)); an empty `cpu` is the machine at hand.
        compiler: the command that links it; empty: the system's (cross) compiler.
    """

    name: str
    description: str
    runtime: str
    architecture: str
    weights: Format
    activations: Format
    weight_bits: tuple[int, ...] = tuple(range(2, 9))
    activation_bits: tuple[int, ...] = tuple(range(2, 9))
    float_layers: bool = True
    integer: frozenset[str] = _ONNXRUNTIME_INTEGER
    moves: frozenset[str] = _ONNXRUNTIME_MOVES
    shares: frozenset[str] = frozenset()
    float_output: frozenset[str] = frozenset({"linear"})
    channel_multiple: int = 8
    depthwise_norm: bool = True
    decompose: frozenset[str] = frozenset({"hard_swish", "silu"})
    block_products: Literal["int8", "float32"] = "int8"
    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    compiler: str = ""

    def __post_init__(self) -> None:
        if self.block_products not in ("int8", "float32"):
            raise InputError(f"block_products must be 'int8' or 'float32', got {self.block_products!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for manifests and reports."""
        data = asdict(self)
        return {
            k: sorted(v) if isinstance(v, frozenset) else list(v) if isinstance(v, tuple) else v
            for k, v in data.items()
        }


# TVM computes any function of one code by a table.
_TVM_INTEGER = _ONNXRUNTIME_INTEGER | {"hard_swish", "silu", "gelu", "tanh"}

_SIGNED_WEIGHTS = Format(bits=8, signed=True, symmetric=True, per_channel=True)

_KNOWN = {
    "arm": Target(
        name="arm",
        description="64-bit ARM CPUs through ONNX Runtime: signed 8-bit activations, which its NEON kernels fuse completely",
        runtime="onnxruntime",
        architecture="aarch64",
        weights=_SIGNED_WEIGHTS,
        activations=Format(bits=8, signed=True, symmetric=False),
    ),
    "x86": Target(
        name="x86",
        description="x86-64 CPUs with VNNI through ONNX Runtime: unsigned 8-bit activations, signed 8-bit weights",
        runtime="onnxruntime",
        architecture="x86_64",
        weights=_SIGNED_WEIGHTS,
        activations=Format(bits=8, signed=False, symmetric=False),
        channel_multiple=16,
    ),
}


def _tvm(name: str, description: str, architecture: str, triple: str = "", cpu: str = "", *features: str) -> Target:
    """A target of TVM; kernels multiply u8 by s8 on x86, s8 by s8 elsewhere."""
    return Target(
        name=name,
        description=f"{description} through TVM: compiled ahead of time",
        runtime="tvm",
        architecture=architecture,
        weights=_SIGNED_WEIGHTS,
        activations=Format(bits=8, signed=architecture != "x86_64", symmetric=False),
        integer=_TVM_INTEGER,
        channel_multiple=16,
        decompose=frozenset(),
        triple=triple,
        cpu=cpu,
        features=features,
    )


_ARM64 = {
    "cortex-a53": "in-order 64-bit ARM cores (Raspberry Pi 3)",
    "cortex-a72": "64-bit ARM cores (Raspberry Pi 4)",
    "cortex-a76": "64-bit ARM cores with dot products (Raspberry Pi 5, phones)",
    "neoverse-n1": "64-bit ARM servers (Graviton 2, Ampere Altra)",
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
]
_KNOWN |= {target.name: target for target in _COMPILED}


def names() -> list[str]:
    """The names `find` knows."""
    return [*sorted(_KNOWN), "host"]


def find(target: str | Target) -> Target:
    """The target of this name; a `Target` is returned as it is.

    Raises:
        InputError: the name is unknown; the message suggests the nearest and lists all.
    """
    if isinstance(target, Target):
        return target
    if target == "host":
        return host()
    if target not in _KNOWN:
        near = difflib.get_close_matches(str(target), names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown target {target!r}; {hint}Known targets: {', '.join(names())}")
    return _KNOWN[target]


def host() -> Target:
    """The machine this runs on.

    x86 without VNNI adds pairs of u8 x s8 products in 16 bits, which saturate; 7-bit weights cannot, so they are used there.
    """
    if architecture() == "aarch64":
        return replace(_KNOWN["arm"], name="host")
    x86 = replace(_KNOWN["x86"], name="host")
    if cpu_features() & {"avx512_vnni", "avx_vnni"}:
        return x86
    return replace(
        x86,
        description="x86-64 CPU without VNNI: 7-bit weights, because its 8-bit kernels add pairs of products in 16 bits",
        weights=replace(x86.weights, bits=7),
        weight_bits=tuple(range(2, 8)),
    )


def architecture() -> str:
    """What this machine is called in `Target.architecture`."""
    return platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")


def cpu_features() -> frozenset[str]:
    """Instruction-set flags of this machine as the kernel names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())
