"""Linear layers whose weights are packed in blocks: one operator, com.microsoft.MatMulNBits.

    linear(x, dequantize_blocks(codes, scale, zero_point), bias)    ->    matmul_blocks(x, codes, scale, zero_point, bias)

What its kernels multiply with is the target's choice (`Kernels.block_products`): float32, or values rounded to 8 bits block by
block at run time. (A DequantizeLinear in blocks in front of a MatMul is fused by the runtime into the same operator.)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats.blocks import DEQUANTIZE_BLOCKS, dequantize_blocks
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

OPERATOR = "MatMulNBits"
ACCURACY_LEVELS = {"float32": 1, "int8": 4}


def _schema() -> OpSchema:
    """The operator as ONNX Runtime documents it, which onnx does not know."""
    optional = OpSchema.FormalParameterOption.Optional
    parameter = OpSchema.FormalParameter
    return OpSchema(
        OPERATOR, "com.microsoft", 1,
        inputs=[
            parameter("A", "T1"), parameter("B", "T2"), parameter("scales", "T1"),
            parameter("zero_points", "T2", param_option=optional), parameter("g_idx", "T3", param_option=optional),
            parameter("bias", "T1", param_option=optional),
        ],
        outputs=[parameter("Y", "T1")],
        type_constraints=[("T1", ["tensor(float)"], ""), ("T2", ["tensor(uint8)"], ""), ("T3", ["tensor(int32)"], "")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT) for name in ("K", "N", "bits", "block_size")],
    )  # fmt: skip


_MULTIPLY = values.Op(values.Opset("com.microsoft", 1), OPERATOR, _schema())


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


def translate(
    x: Any, codes: Any, scale: Any, zero_point: Any, bias: Any, bits: int, length: int
) -> Any:  # called by torch's exporter
    """The ONNX operator of `matmul_blocks`."""
    out, _, packed = codes.shape
    return _MULTIPLY(x, codes, scale, zero_point, None, bias, K=length, N=out, bits=bits, block_size=packed * 8 // bits)


def choose_products(model: ir.Model, products: str) -> None:
    """Let every MatMulNBits multiply with values of this kind: a key of `ACCURACY_LEVELS`."""
    for node in model.graph:
        if node.op_type == OPERATOR:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", ACCURACY_LEVELS[products])
