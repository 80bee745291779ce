"""Shapes inside a file by running it once, and the multiply-accumulates of its layers.

convolution         elements of the result * elements of the weight / output channels
matrix product      elements of the result * length of what is summed over
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.backends.onnxruntime.artifact import ONE_FILE, open_session
from graphopt.backends.onnxruntime.audit.operators import FLOAT_WORK, INTEGER_WORK
from graphopt.evaluation.compliance.model import Model, attribute
from graphopt.utils.errors import InputError

Feeds = dict[str, np.ndarray[Any, Any]]
Shapes = dict[str, tuple[int, ...]]
WORK = INTEGER_WORK | FLOAT_WORK | {"MatMulNBits": 1}
TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
    "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


def random_inputs(session: Any, shapes: Sequence[Sequence[int]] | None, seed: int = 0) -> Feeds:
    """Normal numbers for every input of a session, zeros for integers; a free batch is 1.

    Raises:
        InputError: other sizes are free and `shapes` does not give them, or it does not fit.
    """
    inputs, generator = session.get_inputs(), np.random.default_rng(seed)
    if shapes is not None and len(shapes) != len(inputs):
        names = ", ".join(i.name for i in inputs)
        raise InputError(f"{len(shapes)} shapes were given, but the model takes {len(inputs)} inputs: {names}")
    feeds: Feeds = {}
    for number, taken in enumerate(inputs):
        if taken.type not in TYPES:
            raise InputError(
                f"input {taken.name!r} is {taken.type}, for which no values can be made; audit another model"
            )
        shape = _shape(taken, None if shapes is None else shapes[number])
        drawn = generator.standard_normal(shape) if "float" in taken.type or "double" in taken.type else np.zeros(shape)
        feeds[taken.name] = drawn.astype(TYPES[taken.type])
    return feeds


def _shape(taken: Any, given: Sequence[int] | None) -> list[int]:
    sizes = list(taken.shape)
    if given is not None:
        if len(given) != len(sizes) or any(isinstance(s, int) and s != g for s, g in zip(sizes, given, strict=True)):
            raise InputError(f"input {taken.name!r} is {sizes}, which {list(given)} does not fit")
        return list(given)
    free = [str(s) for s in sizes[1:] if not isinstance(s, int)]
    if free:
        raise InputError(
            f"input {taken.name!r} has free sizes ({', '.join(free)}); say which with --input-shape, or shapes=[(1, 3, 224, 224)]"
        )
    return [s if isinstance(s, int) else 1 for s in sizes]


def values(path: Path, names: Sequence[str], feeds: Feeds) -> Feeds:
    """Values inside a file by name, computed without any rewriting."""
    model = onnx.load(str(path))
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        copy = Path(folder) / "model.onnx"
        onnx.save(model, str(copy), save_as_external_data=model.ByteSize() > ONE_FILE)
        session = open_session(copy, defaults=True, rewriting=False)
    return dict(zip(names, session.run(list(names), feeds), strict=True)) if names else {}


def shapes_inside(path: Path, model: Model, feeds: Feeds) -> Shapes:
    """Of what layers read and answer, and of what is averaged."""
    wanted = {out for node in model.nodes if node.op_type in WORK for out in node.output[:1]}
    wanted |= {name for node in model.nodes if node.op_type in WORK | {"ReduceMean": 0} for name in node.input[:1]}
    wanted |= {name for node in model.nodes if node.op_type == "MatMul" for name in node.input[1:2]}
    known = {name: value.shape for name, value in {**model.constants, **feeds}.items() if name in wanted}
    inside = values(path, sorted(wanted - set(known)), feeds)
    return known | {name: value.shape for name, value in inside.items()}


def macs(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Of every layer and product of two values, by node name."""
    return {model.name(node): _macs(model, node, shapes) for node in model.nodes if node.op_type in WORK}


def _macs(model: Model, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    into, answers = shapes[node.input[0]], math.prod(shapes[node.output[0]])
    if "Conv" not in node.op_type:
        return answers * int(into[0] if attribute(node, "transA") else into[-1])
    weight = _constant(model, node.input[WORK[node.op_type]])
    if weight is None:
        return 0
    # [out, in / groups, ...]; transposed [in, out / groups, ...]: each element of the input meets the whole kernel
    elements = math.prod(into) if node.op_type == "ConvTranspose" else answers
    return elements * int(weight.size // weight.shape[0])


def _constant(model: Model, name: str) -> np.ndarray[Any, Any] | None:
    """A weight by name, through its quantizers."""
    while name not in model.constants:
        maker = model.maker(name)
        if maker is None:
            return None
        name = maker.input[0]
    return model.constants[name]
