"""Linear layers whose weights are packed in blocks: one operator, com.microsoft.MatMulNBits.

    linear(x, dequantize_blocks(codes, scale, zero_point), bias)    ->    matmul_blocks(x, codes, scale, zero_point, bias)

What its kernels multiply with is the target's choice (`Kernels.block_products`): float32, or values rounded to 8 bits block by
block at run time. (A DequantizeLinear in blocks in front of a MatMul is fused by the runtime into the same operator.)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats.blocks import DEQUANTIZE_BLOCKS, dequantize_blocks
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

OPERATOR = "MatMulNBits"
ACCURACY_LEVELS = {"float32": 1, "int8": 4}


@torch.library.custom_op("graphopt::matmul_blocks", mutates_args=())
def matmul_blocks(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None, bits: int, length: int
) -> Tensor:
    """linear(x, W, bias) of a packed weight W [out, length]."""
    return torch.nn.functional.linear(x, dequantize_blocks(codes, scale, zero_point, bits, length), bias)


@matmul_blocks.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None, bits: int, length: int
) -> Tensor:
    return x.new_empty([*x.shape[:-1], len(codes)])


MATMUL_BLOCKS: Any = torch.ops.graphopt.matmul_blocks.default


def multiply_packed(graph: Graph, node: Node) -> None:
    """Let a linear layer read its packed weight, where it has one."""
    layer = Layer.of(node)
    assert layer is not None
    if layer.weight.target is DEQUANTIZE_BLOCKS:
        codes, scale, zero_point, bits, length = layer.weight.args
        arguments = (layer.input, codes, scale, zero_point, layer.bias, bits, length)
        graph.replace(node, graph.call(MATMUL_BLOCKS, *arguments, before=node))


def choose_products(model: ir.Model, products: str) -> None:
    """Let every MatMulNBits multiply with values of this kind: a key of `ACCURACY_LEVELS`."""
    for node in model.graph:
        if node.op_type == OPERATOR:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", ACCURACY_LEVELS[products])
