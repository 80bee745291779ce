"""Planted violations are found, each by its rule and where it is; models that obey have none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from blocks import images, model_of
from capture_once import capture_once
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.formats import Format
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError

WIDE = find("hexagon").replace(activations=Format(16, signed=False, symmetric=False))
STRICT = find("nvidia").replace(name="strict", float_layers=False)


@cache
def _emitted(name: str, block: str) -> bytes:
    target = {"wide": WIDE, "strict": STRICT}.get(name) or find(name)
    graph = capture_once(model_of(block), images(2), dynamic_batch=not target.runtime.static_shapes)
    done = graphopt.optimize(graph, target=target, calibration=[images(8)], measure=False)
    return (done.artifact.folder / "model.onnx").read_bytes()


class Planted:
    """A model to spoil. Layers, quantizers and so on are counted in execution order."""

    def __init__(self, target: str, block: str = "residual") -> None:
        self.target: Target = {"wide": WIDE, "strict": STRICT}.get(target) or find(target)
        self.model = onnx.load_from_string(_emitted(target, block))
        self.graph = self.model.graph
        self.initial = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}

    def nodes(self, kind: str) -> list[Any]:
        return [n for n in self.graph.node if n.op_type == kind]

    def maker(self, value: str) -> Any:
        return next(n for n in self.graph.node if value in n.output)

    def weight(self, layer: int = 0) -> Any:
        """The DequantizeLinear of a convolution's weight."""
        return self.maker(self.nodes("Conv")[layer].input[1])

    def bias(self) -> Any:
        return self.maker(self.nodes("Conv")[0].input[2])

    def constant(self, array: Any) -> str:
        name = f"planted_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def change(self, node: Any, position: int, edit: Callable[[Any], Any]) -> Any:
        """Give a node a constant of its own: what `edit` makes of the one it has."""
        node.input[position] = self.constant(edit(self.initial[node.input[position]]))
        return node

    def insert(self, kind: str, after: Any, inputs: list[str] | None = None, **attributes: Any) -> Any:
        """A node that takes the place of another's result for all who read it."""
        value = after.output[0]
        made = helper.make_node(kind, [value, *(inputs or [])], [f"{value}_{kind}"], f"planted_{kind}", **attributes)
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == value:
                    node.input[position] = made.output[0]
        self.graph.node.insert(list(self.graph.node).index(after) + 1, made)
        return made

    def skip(self, node: Any) -> None:
        """Let the readers of a node read what it reads."""
        for other in self.graph.node:
            for position, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[position] = node.input[0]
        self.graph.node.remove(node)

    def value_pair(self, layer: int = 0) -> tuple[Any, Any]:
        """QuantizeLinear and DequantizeLinear of what a convolution reads."""
        reader = self.maker(self.nodes("Conv")[layer].input[0])
        return self.maker(reader.input[0]), reader

    def both(self, position: int, edit: Callable[[Any], Any], layer: int = 0) -> Any:
        for node in self.value_pair(layer):
            self.change(node, position, edit)
        return self.value_pair(layer)[0]


def cast(dtype: Any) -> Callable[[Any], Any]:
    return lambda array: array.astype(dtype)


def weight_as(p: Planted, dtype: Any) -> Any:
    return p.change(p.change(p.weight(), 0, cast(dtype)), 2, cast(dtype))


def value_as(p: Planted, dtype: Any) -> Any:
    return p.both(2, cast(dtype))


def with_code(p: Planted, code: int) -> Any:
    def edit(codes: Any) -> Any:
        codes = codes.copy()
        codes.flat[0] = code
        return codes

    return p.change(p.weight(), 0, edit)


def at_run_time(p: Planted) -> Any:
    weight = p.weight()
    made = helper.make_node("Abs", [weight.input[1]], ["scale_at_run_time"], "planted_Abs")
    p.graph.node.insert(0, made)
    weight.input[1] = "scale_at_run_time"
    return weight


def along_inputs(p: Planted) -> Any:
    weight = p.weight(1)
    for attribute in weight.attribute:
        attribute.i = 1 if attribute.name == "axis" else attribute.i
    return weight


def in_blocks(p: Planted) -> Any:
    weight = p.weight(1)
    weight.attribute.append(helper.make_attribute("block_size", 4))
    return weight


def float_weight(p: Planted) -> Any:
    conv = p.nodes("Conv")[0]
    conv.input[1] = p.constant(np.zeros((8, 3, 3, 3), np.float32))
    return conv


def float_bias(p: Planted) -> Any:
    conv = p.nodes("Conv")[0]
    conv.input[2] = p.constant(np.zeros(8, np.float32))
    return conv


def bias_of_codes(p: Planted) -> Any:
    conv = p.nodes("Conv")[0]
    codes, scale = p.constant(np.zeros(8, np.int32)), p.constant(np.float32(0.1))
    made = helper.make_node("DequantizeLinear", [codes, scale], ["bias_of_codes"], "planted_bias")
    p.graph.node.insert(0, made)
    conv.input[2] = made.output[0]
    return conv


def rounded_before_the_sum(p: Planted) -> Any:
    (add,) = p.nodes("Add")
    layer = next(maker for value in add.input if (maker := p.maker(value)).op_type == "Conv")
    grid = [p.constant(np.float32(0.1)), p.constant(np.int8(0))]
    p.insert("DequantizeLinear", p.insert("QuantizeLinear", layer, grid), grid)
    return add


def float_image(p: Planted) -> Any:
    for node in p.value_pair():
        p.skip(node)
    return p.nodes("Conv")[0]


def float_result(p: Planted) -> Any:
    conv = p.nodes("Conv")[2]  # is added to the residual
    quantizer = next(n for n in p.graph.node if conv.output[0] in n.input)
    reader = next(n for n in p.graph.node if quantizer.output[0] in n.input)
    p.skip(reader)
    p.skip(quantizer)
    return conv


def half_float_sum(p: Planted) -> Any:
    float_result(p)
    return p.nodes("Add")[0]


def float_layer(p: Planted) -> Any:
    conv = float_weight(p)
    float_image(p)
    relu = next(n for n in p.graph.node if conv.output[0] in n.input)
    quantizer = next(n for n in p.graph.node if relu.output[0] in n.input)
    for reader in [n for n in p.graph.node if quantizer.output[0] in n.input]:
        p.skip(reader)
    p.skip(quantizer)
    return conv


def moved(p: Planted) -> Any:
    pool = p.nodes("MaxPool")[0]
    quantizer = next(n for n in p.graph.node if pool.output[0] in n.input)
    p.change(quantizer, 1, lambda s: s * 2)
    return pool


def twice(p: Planted) -> Any:
    _, reader = p.value_pair(1)
    scale, zero = p.constant(np.float32(0.5)), p.constant(np.int8(0))
    again = p.insert("QuantizeLinear", reader, [scale, zero])
    p.insert("DequantizeLinear", again, [scale, zero])
    return again


def split(p: Planted) -> Any:
    conv = p.nodes("Conv")[0]
    scale, zero = p.constant(np.float32(0.5)), p.constant(np.int8(0))
    p.insert("DequantizeLinear", p.insert("QuantizeLinear", conv, [scale, zero]), [scale, zero])
    return p.nodes("Relu")[0]


def on_codes(p: Planted, kind: str, *inputs: Any) -> Any:
    return p.insert(kind, p.value_pair(1)[0], [p.constant(i) for i in inputs])


def sigmoid(p: Planted) -> Any:
    _, reader = p.value_pair(1)
    made = p.insert("Sigmoid", reader)
    scale, zero = reader.input[1], reader.input[2]
    p.insert("DequantizeLinear", p.insert("QuantizeLinear", made, [scale, zero]), [scale, zero])
    return made


def batch_norm(p: Planted) -> Any:
    return p.insert("BatchNormalization", p.nodes("Conv")[0], [p.constant(np.ones(8, np.float32)) for _ in range(4)])


def operator_format(p: Planted) -> Any:
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    made = helper.make_node("QLinearConv", names, ["q"], "planted_QLinearConv")
    p.graph.node.append(made)
    return made


def dynamic(p: Planted) -> Any:
    made = helper.make_node("DynamicQuantizeLinear", [p.graph.input[0].name], ["a", "b", "c"], "planted_Dynamic")
    p.graph.node.append(made)
    return made


def old_opset(p: Planted) -> Any:
    p.model.opset_import[0].version = 18
    return p.value_pair()[0]


def free_batch(p: Planted) -> Any:
    p.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return p.graph.input[0]


def scale_of_weight(edit: Callable[[Any], Any]) -> Callable[[Planted], Any]:
    return lambda p: p.change(p.weight(), 1, edit)


PLANTED: list[tuple[str, Any, str]] = [
    ("nvidia", lambda p: p.change(p.weight(), 2, lambda z: z + 1), "weight-zero-point"),
    ("nvidia", lambda p: weight_as(p, np.uint8), "weight-sign"),
    ("nvidia", lambda p: weight_as(p, np.int16), "weight-bits"),
    ("nvidia", along_inputs, "weight-axis"),
    ("nvidia", lambda p: with_code(p, -128), "weight-code-range"),
    ("x86-avx2", lambda p: with_code(p, 100), "weight-code-range"),
    ("nvidia", scale_of_weight(lambda s: s * np.float32(np.nan)), "weight-positive-scale"),
    ("nvidia", scale_of_weight(lambda s: s * 0), "weight-positive-scale"),
    ("nvidia", at_run_time, "weight-constant-grid"),
    ("nvidia", in_blocks, "weight-granularity"),
    ("vitis", lambda p: p.change(p.weight(), 1, lambda s: np.full(8, s)), "weight-granularity"),
    ("vitis", scale_of_weight(lambda s: s * np.float32(1.1)), "weight-power-of-two"),
    ("vitis", lambda p: p.both(1, lambda s: s * np.float32(1.1)), "value-power-of-two"),
    ("nvidia", lambda p: p.both(2, lambda z: z + 3), "value-zero-point"),
    ("nvidia", lambda p: value_as(p, np.uint8), "value-sign"),
    ("hexagon", lambda p: value_as(p, np.int8), "value-sign"),
    ("nvidia", lambda p: value_as(p, np.int16), "value-bits"),
    ("nvidia", lambda p: p.both(1, lambda s: np.full(3, s)), "value-granularity"),
    ("nvidia", lambda p: p.both(1, lambda s: -s), "value-positive-scale"),
    ("sigmastar", float_bias, "bias-float"),
    ("sigmastar", lambda p: p.change(p.bias(), 1, lambda s: s * 3) and p.nodes("Conv")[0], "bias-grid"),
    ("sigmastar", lambda p: p.change(p.bias(), 2, lambda z: z + 1) and p.nodes("Conv")[0], "bias-grid"),
    ("nvidia", float_image, "float-operand"),
    ("nvidia", float_weight, "float-operand"),
    ("nvidia", bias_of_codes, "bias-codes"),
    ("nvidia", rounded_before_the_sum, "split-sum"),
    ("sigmastar", float_result, "float-result"),
    ("sigmastar", half_float_sum, "mixed-operands"),
    ("strict", float_layer, "float-layer"),
    ("vitis", sigmoid, "operator"),
    ("nvidia plain", moved, "moved-grid"),
    ("nvidia", twice, "rounded-twice"),
    ("nvidia", split, "split-activation"),
    ("sigmastar", lambda p: on_codes(p, "Clip", np.int8(-5), np.int8(5)), "arithmetic-on-codes"),
    ("hexagon", lambda p: on_codes(p, "Add", np.uint8(1)), "arithmetic-on-codes"),
    ("ascend", operator_format, "operator-format"),
    ("ceva", dynamic, "dynamic-quantization"),
    ("ambarella", batch_norm, "batch-norm"),
    ("wide", old_opset, "opset"),
    ("hexagon", free_batch, "free-size"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "target, plant, rule", PLANTED, ids=[f"{t} {rule} {i}" for i, (t, _, rule) in enumerate(PLANTED)]
)
def test_a_planted_violation_is_found_where_it_is(target: str, plant: Callable[[Planted], Any], rule: str) -> None:
    name, _, block = target.partition(" ")
    planted = Planted(name, block or "residual")
    assert graphopt.check(planted.model, planted.target) == []
    culprit = plant(planted)
    found = [v for v in graphopt.check(planted.model, planted.target) if v.rule == rule]
    assert culprit.name in " ".join(v.node for v in found) or (rule.startswith(("weight", "value")) and found)
    assert all(v.what and v.remedy for v in found)


@pytest.mark.thorough
def test_a_file_of_another_tool_is_checked_by_its_path(tmp_path: Path) -> None:
    planted = Planted("sigmastar")
    onnx.save(planted.model, str(tmp_path / "theirs.onnx"))
    assert graphopt.check(tmp_path / "theirs.onnx", "sigmastar") == []
    rules = {violation.rule for violation in graphopt.check(tmp_path / "theirs.onnx", "vitis")}
    assert rules == {"weight-granularity", "weight-power-of-two", "value-power-of-two"}


@pytest.mark.parametrize("content", [None, b"no model at all"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"no ONNX model"):
        graphopt.check(path, "nvidia")


def test_a_float_model_obeys_where_float_is_allowed() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    assert graphopt.check(helper.make_model(graph), "hexagon") == []
