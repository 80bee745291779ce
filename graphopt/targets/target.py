"""What there is to say about a target."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from graphopt.formats import FloatFormat, Format, NumberFormat, to_json
from graphopt.targets.families import ONNXRUNTIME_INTEGER, ONNXRUNTIME_MOVES
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Target:
    """Hardware and runtime as facts.

    Attributes:
        name, description: how it is called and what it is.
        runtime: the backend that lowers for it; see `graphopt.artifacts.registry`.
        architecture: `platform.machine()` of the hardware, for telling whether a latency can be measured here.
        machine: whose integer kernels run there, as `graphopt.simulate` names them, where the architecture does not tell:
            `avx2` for x86-64 without VNNI. None: the architecture's.
        weights, activations: number formats of the kernels that quantized layers run in.
        weight_formats, activation_formats: what the hardware takes beside those two.
        fused_sums: a sum is computed behind one of the layers it adds, which hands it over unrounded.
        float_bias: biases stay float, in place of int32 on the grid of the sums.
        rest: what computes in no integer computes in this format; None: in float32.
        source: where the facts come from.
        vendor_compiler: the artifact is an ONNX file that the vendor's compiler reads, which knows no arithmetic on codes.
        static_shapes: it needs to know the batch size.
        weight_bits, activation_bits: the bits those kernels take: fewer are stored in the same integers, and take the same time.
        float_layers: single layers may be left in float.
        integer: operator families computed in integer.
        tables: every function of one value has an integer kernel, which looks its results up.
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
        kernels: what a compiling runtime makes compute: the CPU, or a GPU in `cuda` or `opencl`. `triple` then is that of the
            machine it is part of, and `cpu` the GPU ("sm_87"; nothing for OpenCL).
    """

    name: str
    description: str
    runtime: str
    architecture: str
    weights: NumberFormat
    activations: NumberFormat
    weight_bits: tuple[int, ...] = tuple(range(2, 9))
    activation_bits: tuple[int, ...] = tuple(range(2, 9))
    float_layers: bool = True
    integer: frozenset[str] = ONNXRUNTIME_INTEGER
    tables: bool = False
    moves: frozenset[str] = ONNXRUNTIME_MOVES
    shares: frozenset[str] = frozenset()
    float_output: frozenset[str] = frozenset({"linear"})
    channel_multiple: int = 8
    depthwise_norm: bool = True
    decompose: frozenset[str] = frozenset({"hard_swish", "silu"})
    block_products: Literal["int8", "float32"] = "int8"
    machine: str | None = None
    weight_formats: tuple[NumberFormat, ...] = ()
    activation_formats: tuple[NumberFormat, ...] = ()
    fused_sums: bool = False
    float_bias: bool = False
    rest: FloatFormat | None = None
    source: str = "measured on the runtime"
    vendor_compiler: bool = False
    static_shapes: bool = False
    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    compiler: str = ""
    kernels: Literal["cpu", "cuda", "opencl"] = "cpu"

    def __post_init__(self) -> None:
        if self.block_products not in ("int8", "float32"):
            raise InputError(f"block_products must be 'int8' or 'float32', got {self.block_products!r}")

    def known(self, kind: Literal["weights", "values"]) -> tuple[NumberFormat, ...]:
        """The formats that the hardware takes, its first choice first."""
        if kind == "weights":
            return (self.weights, *self.weight_formats)
        return (self.activations, *self.activation_formats)

    def takes(self, format: NumberFormat, kind: Literal["weights", "values"]) -> bool:
        """Whether the hardware takes a format, or one like it with more bits. Kernels of CPUs take all that are uniform."""
        if not self.vendor_compiler and self.runtime != "packed":
            return True
        return any(format == one or _narrower(format, one) for one in self.known(kind))

    @property
    def codes(self) -> Format:
        """The format of values, which must be uniform.

        Raises:
            InputError: it is not.
        """
        if not isinstance(self.activations, Format):
            raise InputError(f"values of {self.name!r} are {self.activations}, which ONNX has no codes for")
        return self.activations

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for manifests and reports."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _narrower(format: NumberFormat, other: NumberFormat) -> bool:
    """Whether a format is another one with fewer bits."""
    if not isinstance(format, Format) or not isinstance(other, Format):
        return False
    return format.bits < other.bits and replace(format, bits=other.bits) == other


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return to_json(value) if is_dataclass(value) else value  # type: ignore[arg-type]
