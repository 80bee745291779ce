"""Layers whose products saturate on a CPU without VNNI, and what ONNX Runtime 1.31.1 answers to them there.

`PYTHONPATH=. python tests/helpers/saturating.py` writes saturating.json again, by an emulated CPU (see emulation.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from emulation import HASWELL
from onnx import TensorProto, helper, numpy_helper
from rewriting import capture
from torch import Tensor, nn

from graphopt.ir.layer import Layer
from graphopt.lowering.integers.fusion import _without_tensors
from graphopt.lowering.integers.kernels import LayerKernel, centred
from graphopt.lowering.integers.pairs import Pairs
from graphopt.lowering.qdq import QuantizationParameters

RECORDED = Path(__file__).with_name("saturating.json")


class Case(NamedTuple):
    """A layer, the shape of what it reads, and the types of codes; `saturates`: whether some of its sums do."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    saturates: bool = True
    weight_zero_point: int = 0
    bits: int = 8
    values: torch.dtype = torch.uint8
    weights: torch.dtype = torch.int8


CASES = {
    "pairs that reach from one kernel position to the next": Case(lambda: nn.Conv2d(3, 4, 3, padding=1), (1, 3, 5, 4)),
    "one channel": Case(lambda: nn.Conv2d(1, 2, 3, padding=1), (1, 1, 5, 4)),
    "channels in fours": Case(lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), (1, 8, 5, 4)),
    "more channels than a panel": Case(lambda: nn.Conv2d(16, 20, 1), (1, 16, 3, 3)),
    "pointwise, an odd number of channels": Case(lambda: nn.Conv2d(15, 4, 1), (1, 15, 5, 4)),
    "groups": Case(lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (1, 6, 5, 4)),
    "two channels for each": Case(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 5, 4)),
    "dilation": Case(lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2), (2, 4, 5, 4)),
    "one dimension": Case(lambda: nn.Conv1d(3, 4, 3, padding=1, stride=2), (2, 3, 9)),
    "three dimensions": Case(lambda: nn.Conv3d(2, 3, (2, 3, 2)), (1, 2, 4, 4, 4)),
    "one row": Case(lambda: nn.Linear(37, 10), (1, 37)),
    "rows": Case(lambda: nn.Linear(64, 17), (5, 64)),
    "a zero point of weights": Case(lambda: nn.Conv2d(3, 4, 3, padding=1), (1, 3, 5, 4), weight_zero_point=5),
    "depthwise": Case(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 4), saturates=False),
    "depthwise, channels in sixteens": Case(lambda: nn.Conv2d(16, 16, 3, groups=16), (1, 16, 5, 4), saturates=False),
    "one channel to one channel": Case(lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 1, 5, 4), saturates=False),
    "weights of 7 bits": Case(lambda: nn.Conv2d(8, 16, 3, padding=1), (1, 8, 5, 4), saturates=False, bits=7),
    "signed values": Case(lambda: nn.Conv2d(8, 16, 3, padding=1), (1, 8, 5, 4), saturates=False, values=torch.int8),
    "signed values of a linear layer": Case(lambda: nn.Linear(64, 17), (5, 64), saturates=False, values=torch.int8),
    "unsigned weights": Case(
        lambda: nn.Conv2d(8, 16, 3, padding=1),
        (1, 8, 5, 4),
        saturates=False,
        weights=torch.uint8,
        weight_zero_point=128,
    ),
}


class Made(NamedTuple):
    """A layer in numbers: codes, and a grid of the result that spans the middle of its sums."""

    layer: Layer
    codes: Tensor
    weight: Tensor
    x: QuantizationParameters
    y: QuantizationParameters


def make(name: str) -> Made:
    """Codes near the ends of their range, half of the weights; all whole numbers, the same on every machine."""
    case = CASES[name]
    random = np.random.RandomState(len(name))
    graph = capture(case.make(), torch.zeros(case.shape))
    (layer,) = [found for node in graph.calls() if (found := Layer.of(node)) is not None]
    shape = tuple(graph.tensor(layer.weight).shape)
    end = 2 ** (case.bits - 1) - 1
    weight = np.where(
        random.rand(*shape) < 0.5, np.where(random.rand(*shape) < 0.7, end, -end), random.randint(-end, end, shape)
    )
    codes = np.where(
        random.rand(*case.shape) < 0.5, random.randint(200, 256, case.shape), random.randint(0, 256, case.shape)
    )
    info, of_weights = torch.iinfo(case.values), torch.iinfo(case.weights)
    step = 2.0 ** np.ceil(np.log2(np.prod(shape[1:]) * 255 * 127 / 255))
    x = QuantizationParameters(1.0, 20 + info.min, info.min, info.max, case.values)
    y = QuantizationParameters(float(step), 120 + info.min, info.min, info.max, case.values)
    stored = torch.from_numpy(weight + of_weights.min + 128).to(case.weights)
    return Made(layer, torch.from_numpy(codes + info.min).to(case.values), stored, x, y)


def kernel(name: str, *, in_pairs: bool) -> LayerKernel:
    layer, _, weight, x, y = make(name)
    zero_point = torch.tensor(CASES[name].weight_zero_point)
    return LayerKernel(
        operator=partial(_without_tensors, layer.node), weight=centred(weight, zero_point, x), bias=None, scale=torch.ones(()),
        zero_point=x.zero_point, channel_dim=layer.channel_dim, grid=y, pairs=Pairs.of(layer, weight, x) if in_pairs else None,
    )  # fmt: skip


def model(cases: dict[str, Case]) -> tuple[onnx.ModelProto, list[np.ndarray[Any, Any]]]:
    """Cases side by side as the runtime's own operators, and their inputs."""
    nodes, constants, inputs, outputs, values = [], [], [], [], []
    for number, (name, case) in enumerate(cases.items()):
        layer, codes, weight, x, y = make(name)
        linear = layer.kind == "linear"
        array = weight.T.contiguous().numpy() if linear else weight.numpy()
        kind, zero_point = codes.numpy().dtype, np.array(case.weight_zero_point, array.dtype)
        named = {
            f"w{number}": array, f"zw{number}": zero_point, f"sw{number}": np.float32(1), f"sx{number}": np.float32(x.scale),
            f"zx{number}": np.array(x.zero_point, kind), f"sy{number}": np.float32(y.scale),
            f"zy{number}": np.array(y.zero_point, kind),
        }  # fmt: skip
        constants += [numpy_helper.from_array(np.asarray(v), k) for k, v in named.items()]
        order = [f"{v}{number}" for v in ("x", "sx", "zx", "w", "sw", "zw", "sy", "zy")]
        if linear:
            order.insert(6, "")  # no bias
        options = {} if linear else {
            "pads": [*layer.padding, *layer.padding], "strides": layer.stride, "dilations": layer.dilation, "group": layer.groups,
        }  # fmt: skip
        operator, domain = ("QGemm", "com.microsoft") if linear else ("QLinearConv", "")
        nodes.append(helper.make_node(operator, order, [name], domain=domain, **options))
        proto = TensorProto.UINT8 if codes.dtype is torch.uint8 else TensorProto.INT8
        inputs.append(helper.make_tensor_value_info(f"x{number}", proto, list(codes.shape)))
        outputs.append(helper.make_tensor_value_info(name, proto, None))
        values.append(codes.numpy())
    graph = helper.make_graph(nodes, "saturating", inputs, outputs, constants)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9), values


def answers(cases: dict[str, Case], **entries: str) -> dict[str, list[int]]:
    """Of the emulated CPU, the codes of every case in a row."""
    with tempfile.TemporaryDirectory() as folder:
        proto, inputs = model(cases)
        onnx.save(proto, str(Path(folder) / "model.onnx"))
        found = HASWELL.onnxruntime({Path(folder): inputs}, 1, **entries)[Path(folder)]
    return {name: found[name].flatten().tolist() for name in cases}


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(codes)}" for name, codes in answers(CASES).items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
