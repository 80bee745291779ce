"""Attention in integer: what each of ONNX Runtime's kernels takes, one layer, batch 1, one thread, beside the float ones.

    scores = Q K^T + mask        shares = softmax(scores)        answer = shares V

Every kernel is a model of its own on random values; all run in turn, and the figures are medians of CPU time. What an integer
form would take is their sum: products on codes, with scores in float for the mask and the softmax, and shares rounded for the
second product. Codes of keys and values are made by the linear layers in front at no cost of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import numpy as np
import onnxruntime as ort
from encoder import by_processor
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir import cost

MICROSOFT = "com.microsoft"
TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
SCALE = np.float32(0.02)
Array = np.ndarray[Any, Any]


def kernel(
    kind: str, inputs: list[Array], constants: list[Array], order: str, result: str, **options: Any
) -> Callable[[], Any]:
    """A call of one operator. `order`: of its inputs, `i` the next of `inputs`, `c` of `constants`; `result`: its type."""
    names = {"i": iter(range(len(inputs))), "c": iter(range(len(constants)))}
    read = [f"{letter}{next(names[letter])}" for letter in order]
    given = [helper.make_tensor_value_info(f"i{n}", TYPES[str(a.dtype)], a.shape) for n, a in enumerate(inputs)]
    kept = [numpy_helper.from_array(np.asarray(c), f"c{n}") for n, c in enumerate(constants)]
    out = helper.make_tensor_value_info("o", TYPES[result], None)
    graph = helper.make_graph([helper.make_node(kind, read, ["o"], **options)], "kernel", given, [out], kept)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feeds = {f"i{n}": array for n, array in enumerate(inputs)}
    return lambda: session.run(None, feeds)


def kernels(heads: int, tokens: int, size: int) -> dict[str, Callable[[], Any]]:
    random = np.random.default_rng(0)
    floats = lambda *shape: random.standard_normal((1, heads, *shape)).astype(np.float32)  # noqa: E731
    codes = lambda *shape: random.integers(0, 100, (1, heads, *shape)).astype(np.uint8)  # noqa: E731
    zero, none = np.uint8(128), np.uint8(0)
    scores, rounded = floats(tokens, tokens), codes(tokens, tokens)
    products = [SCALE, SCALE, zero, zero]
    whole = [SCALE, zero, SCALE, zero, SCALE, zero]
    q, k, v = codes(tokens, size), codes(size, tokens), codes(tokens, size)
    return {
        "Q K^T, float": kernel("MatMul", [floats(tokens, size), floats(size, tokens)], [], "ii", "float32"),
        "Q K^T, codes to float": kernel("MatMulIntegerToFloat", [q, k], products, "iicccc", "float32", domain=MICROSOFT),
        "Q K^T, codes to codes": kernel("QLinearMatMul", [q, k], whole, "iccicccc", "uint8"),
        "mask, float": kernel("Add", [scores, np.zeros((1, 1, tokens, tokens), np.float32)], [], "ii", "float32"),
        "softmax, float": kernel("Softmax", [scores], [], "i", "float32"),
        "softmax, codes": kernel(
            "QLinearSoftmax", [rounded], [SCALE, zero, np.float32(1 / 255), none], "icccc", "uint8",
            domain=MICROSOFT, opset=13,
        ),
        "round shares to codes": kernel("QuantizeLinear", [scores], [SCALE, zero], "icc", "uint8"),
        "shares V, float": kernel("MatMul", [scores, floats(tokens, size)], [], "ii", "float32"),
        "shares V, codes to codes": kernel("QLinearMatMul", [rounded, v], whole, "iccicccc", "uint8"),
        "round the answer to codes": kernel("QuantizeLinear", [floats(tokens, size)], [SCALE, zero], "icc", "uint8"),
    }  # fmt: skip


FORMS = {
    "float": ["Q K^T, float", "mask, float", "softmax, float", "shares V, float", "round the answer to codes"],
    "products in integer": [
        "Q K^T, codes to float", "mask, float", "softmax, float", "round shares to codes", "shares V, codes to codes",
    ],
    "all in integer, without a mask": ["Q K^T, codes to codes", "softmax, codes", "shares V, codes to codes"],
}  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, heads=12, tokens=128, size=32, rounds=200)
    calls = kernels(options.heads, options.tokens, options.size)
    used = cost.timings(
        {name: by_processor(call) for name, call in calls.items()},
        repeats=options.rounds,
        budget_seconds=60,
        clocked=True,
    )
    taken = {name: used.median(name) * 1e3 for name in calls}
    title = f"{options.heads} heads of {options.size}, {options.tokens} tokens"
    tables: dict[str, common.Rows] = {
        f"{title}: kernels": [{"kernel": name, "us": us} for name, us in taken.items()],
        f"{title}: forms of attention": [{"form": f, "us": sum(taken[n] for n in names)} for f, names in FORMS.items()],
    }
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
