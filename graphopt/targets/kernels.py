"""Which operators the kernels of a runtime compute in integer, and what they require of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphopt.targets.families import ONNXRUNTIME_INTEGER, ONNXRUNTIME_MOVES, SHARING, check_families
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Kernels:
    """Facts about kernels. Operators are named by their families, such as `conv`; see `graphopt.ir.ops`.

    Attributes:
        integer: families with integer kernels.
        tables: every function of a single activation (sigmoid, GELU, ...) is computed in integer, by a lookup table.
        moves: families that only rearrange values and do so on integer codes, so that input and output have the same scale and
            zero point.
        shares: families that compute in integer only if input and output have the same scale and zero point.
        float_output: layers whose integer kernels can return float32, so that no quantizer need follow them.
        float_layers: single layers may be kept in float.
        fused_sums: an addition is part of the kernel of a layer that it adds, and takes that layer's result unrounded.
        channel_multiple: channel counts that are multiples of this are fastest; pruning and factorization keep to them.
        depthwise_norm: a batch norm that follows no layer is fastest as a depthwise convolution.
        decompose: activation functions that are written as several operators with integer kernels: of `hard_swish` and `silu`.
        block_products: what weights with a scale per block are multiplied with: `int8`, activations quantized at run time, or
            `float32`, as in the simulated graph, but slower where the kernels unpack (2 and 8 bits).

    Raises:
        InputError: an unknown family (suggests the nearest), or another value that there is no kernel for.
    """

    integer: frozenset[str] = ONNXRUNTIME_INTEGER
    tables: bool = False
    moves: frozenset[str] = ONNXRUNTIME_MOVES
    shares: frozenset[str] = SHARING
    float_output: frozenset[str] = frozenset({"linear"})
    float_layers: bool = True
    fused_sums: bool = False
    channel_multiple: int = 8
    depthwise_norm: bool = True
    decompose: frozenset[str] = frozenset({"hard_swish", "silu"})
    block_products: Literal["int8", "float32"] = "int8"

    def __post_init__(self) -> None:
        for name in ("integer", "moves", "shares", "float_output", "decompose"):
            check_families(name, getattr(self, name))
        if both := sorted(self.integer & self.moves):
            raise InputError(
                f"{', '.join(both)}: families compute in integer or move codes; leave them out of one of both"
            )
        if self.block_products not in ("int8", "float32"):
            raise InputError(f"block_products must be 'int8' or 'float32', got {self.block_products!r}")
        if (
            isinstance(self.channel_multiple, bool)
            or not isinstance(self.channel_multiple, int)
            or self.channel_multiple < 1
        ):
            raise InputError(f"channel_multiple must be a whole number of at least 1, got {self.channel_multiple!r}")
