"""ONNX Runtime's operators of quantized values, one at a time."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import Tensor

from graphopt.lowering.integers.arithmetic import all_codes
from graphopt.lowering.qdq import QuantizationParameters

TYPES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def model(operator: str, grids: list[QuantizationParameters], *inputs: Tensor, **attributes: Any) -> Any:
    """One operator of quantized values: the last grid is the result's."""
    kind = TensorProto.UINT8 if grids[0].dtype is torch.uint8 else TensorProto.INT8
    names = [f"x{i}" for i in range(len(inputs))]
    constants = []
    for number, grid in enumerate(grids):
        constants.append(helper.make_tensor(f"s{number}", TensorProto.FLOAT, [], [grid.scale]))
        constants.append(helper.make_tensor(f"z{number}", kind, [], [grid.zero_point]))
    operands = [v for i, name in enumerate(names) for v in (name, f"s{i}", f"z{i}")]
    last = len(grids) - 1
    node = helper.make_node(operator, [*operands, f"s{last}", f"z{last}"], ["y"], domain="com.microsoft", **attributes)
    values = [helper.make_tensor_value_info(n, kind, list(x.shape)) for n, x in zip(names, inputs, strict=True)]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", kind, None)], constants)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


def run(operator: str, grids: list[QuantizationParameters], *inputs: Tensor, **attributes: Any) -> Tensor:
    """What ONNX Runtime answers on this machine."""
    proto = model(operator, grids, *inputs, **attributes)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {f"x{i}": x.numpy() for i, x in enumerate(inputs)})
    return torch.from_numpy(found)


def quantized(x: Tensor, grid: QuantizationParameters) -> Tensor:
    """What ONNX Runtime's QuantizeLinear answers on this machine."""
    kind = TensorProto.UINT8 if grid.dtype is torch.uint8 else TensorProto.INT8
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [grid.scale])
    zero_point = helper.make_tensor("z", kind, [], [grid.zero_point])
    value, codes = (helper.make_tensor_value_info(n, t, list(x.shape)) for n, t in (("x", 1), ("y", kind)))
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = helper.make_graph([node], "g", [value], [codes], [scale, zero_point])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def pairs(a: QuantizationParameters, b: QuantizationParameters) -> tuple[Tensor, Tensor]:
    """Every code of one grid beside every code of the other."""
    p, q = torch.meshgrid(all_codes(a.dtype), all_codes(b.dtype), indexing="ij")
    return p.to(a.dtype).contiguous(), q.to(b.dtype).contiguous()
