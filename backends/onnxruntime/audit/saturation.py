"""Layers whose sums can saturate on a CPU without VNNI; `graphopt.lowering.integers.pairs` says how.

What counts is what runs: a layer in float, or one that reads signed codes, is exact. So a fix that brings a layer into integer,
or stores what it reads unsigned, can make it saturate.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from graphopt.backends.onnxruntime.audit.float_regions import Origins
from graphopt.backends.onnxruntime.audit.reading import Reading, adds_pairs
from graphopt.evaluation.compliance.model import attribute
from graphopt.lowering.integers.pairs import can_saturate
from graphopt.targets import Runtime

LAYERS = {"QLinearConv", "QGemm", "QLinearMatMul"}
VALUES_ZERO_POINT, WEIGHT = 2, 3  # among the inputs of all three


def saturating(reading: Reading, origins: Origins, runtime: Runtime) -> list[str]:
    """Names of the file's layers that can, in the order in which they run; none for targets whose sums are exact."""
    if not adds_pairs(runtime):
        return []
    found = [node for node in reading.nodes if saturates(node, reading)]
    names = [origins.model.name(origins.original[id(n)]) if id(n) in origins.original else n.name for n in found]
    return list(dict.fromkeys(names))


def saturates(node: onnx.NodeProto, reading: Reading) -> bool:
    """Whether sums of a layer can, where products are added in pairs."""
    if node.op_type not in LAYERS:
        return False
    zero_point, stored = (reading.constants.get(node.input[i]) for i in (VALUES_ZERO_POINT, WEIGHT))
    if zero_point is None or zero_point.data_type != onnx.TensorProto.UINT8:
        return False
    if stored is None or stored.data_type != onnx.TensorProto.INT8:
        return False
    weight = numpy_helper.to_array(stored)
    if node.op_type == "QLinearConv":
        if weight.shape[1] == 1 and weight.shape[0] == attribute(node, "group"):
            return False  # depthwise: other kernels
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)  # channels last, as the kernels read patches
    elif attribute(node, "transB"):
        rows = weight
    else:
        rows = np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
    pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2)
    return bool(can_saturate(torch.from_numpy(pairs.copy())).any())
