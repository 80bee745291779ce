"""One function per rule: what in a model breaks it, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from graphopt.evaluation.compliance.model import ACTIVATIONS, LAYERS, DeclaredGrid, Model, attribute
from graphopt.evaluation.compliance.quantizers import Misfit, misfits
from graphopt.evaluation.compliance.violation import Violation
from graphopt.targets import Target

CODES = {"QuantizeLinear", "DequantizeLinear"}
# Operators with integer kernels between codes, as families of `Kernels.integer`.
FAMILIES = {
    "Add": "add", "Mul": "mul", "Concat": "concat", "Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Softmax": "softmax",
    "LeakyRelu": "leaky_relu", "AveragePool": "average_pool", "GlobalAveragePool": "global_average_pool",
}  # fmt: skip
MOVES = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Identity"}
OPERATOR_FORMAT = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd"}
SIXTEEN_BITS = 21  # the opset from which codes may have them
PER_CHANNEL = 13


Rule = Callable[[Model, Target], Iterator[Violation]]


def family_of(operator: str) -> str | None:
    """What a target's tables call an operator; None for those that they do not know."""
    if operator in LAYERS:
        return "linear" if operator in ("Gemm", "MatMul") else "conv"
    return FAMILIES.get(operator)


def _named(subject: str, grid: DeclaredGrid, found: list[Misfit]) -> Iterator[Violation]:
    for misfit in found:
        yield Violation(f"{subject}-{misfit.rule}", grid.node, misfit.what, misfit.remedy)


def weights(model: Model, target: Target) -> Iterator[Violation]:
    """Weights are in a format of the hardware."""
    seen = set()
    for node in model.layers():
        if not model.is_weight(node.input[1]) or (grid := model.grid(node.input[1])) is None or grid.node in seen:
            continue
        seen.add(grid.node)
        axis = LAYERS[node.op_type]
        if node.op_type == "Gemm" and not attribute(node, "transB"):
            axis = 1
        yield from _named("weight", grid, misfits(grid, target.formats.accepted("weights"), axis))


def values(model: Model, target: Target) -> Iterator[Violation]:
    """Values between layers are in a format of the hardware."""
    for node in model.nodes:
        if node.op_type == "QuantizeLinear" and not model.is_weight(node.input[0]):
            grid = model.grid_of(node)
            yield from _named("value", grid, misfits(grid, target.formats.accepted("activations"), None))


def biases(model: Model, target: Target) -> Iterator[Violation]:
    """Biases are int32 on the grid of the sums: scale of the input times scale of the weight, zero point 0; or float."""
    for node in model.layers():
        if len(node.input) < 3 or not node.input[2]:
            continue
        if target.formats.float_bias:
            if model.grid(node.input[2]) is not None:
                yield Violation("bias-codes", model.name(node), "the bias is codes", "store it in float")
            continue
        x, w, b = (model.grid(name) for name in node.input[:3])
        if x is None or w is None or x.scale is None or w.scale is None or x.per_channel:
            continue
        name, remedy = model.name(node), "store int32 with scale = input scale x weight scale and zero point 0"
        if b is None or b.scale is None:
            yield Violation("bias-float", name, "the bias is float", remedy)
        elif b.dtype != np.int32 or (b.zero_point is not None and np.any(b.zero_point)):
            yield Violation("bias-grid", name, f"the bias is {b.dtype}, zero point {b.zero_point}", remedy)
        elif not np.allclose(b.scale, x.scale * w.scale.reshape(-1), rtol=1e-4, atol=0):
            yield Violation("bias-grid", name, "the bias has another scale than the sums", remedy)


def floats(model: Model, target: Target) -> Iterator[Violation]:
    """Convolutions and linear layers read codes, and their results become codes again."""
    for node in model.layers():
        # runtimes move the quantizer themselves, compilers do not
        grid = model.grid if target.runtime.vendor_compiler else model.moved_grid
        missing = [what for what, value in zip(("input", "weight"), node.input, strict=False) if grid(value) is None]
        if len(missing) == 2 and not any(r.op_type == "QuantizeLinear" for r in model.behind(node)):
            if not target.kernels.float_layers:
                yield Violation(
                    "float-layer",
                    model.name(node),
                    f"{node.op_type} in float",
                    "quantize it; the hardware has no float",
                )
            continue
        if missing:
            yield Violation(
                "float-operand", model.name(node), f"the {' and '.join(missing)} of {node.op_type} is not quantized",
                "put QuantizeLinear and DequantizeLinear in front of it, or it computes in float",
            )  # fmt: skip
            continue
        readers = model.behind(node, sums=target.kernels.fused_sums)
        may_leave = family_of(node.op_type) in target.kernels.float_output
        if not may_leave and any(reader.op_type != "QuantizeLinear" for reader in readers):
            yield Violation(
                "float-result", model.name(node), f"the result of {node.op_type} is not quantized",
                "put QuantizeLinear and DequantizeLinear behind it and its activation, or it computes in float",
            )  # fmt: skip


def sums(model: Model, target: Target) -> Iterator[Violation]:
    """Operators with several inputs read codes from all sides, or from none."""
    for node in model.nodes:
        if FAMILIES.get(node.op_type) not in {"add", "mul", "concat"} & target.kernels.integer:
            continue
        if target.kernels.fused_sums and model.summed(node) is not None:
            continue
        float_inputs = [value for value in node.input if model.grid(value) is None]
        if float_inputs and len(float_inputs) < len(node.input):
            what = f"{node.op_type} reads codes and float ({', '.join(float_inputs)})"
            yield Violation("mixed-operands", model.name(node), what, "quantize every operand, or none")


def split_sums(model: Model, target: Target) -> Iterator[Violation]:
    """Where a sum is computed behind a layer, nothing rounds the layer's result in between."""
    for node in model.nodes if target.kernels.fused_sums else []:
        if node.op_type != "Add" or model.summed(node) is not None:
            continue
        for value in node.input:
            layer = model.rounded_layer(value)
            if layer is not None:
                what = f"quantized between {model.name(layer)} and {node.op_type}, which are one kernel otherwise"
                yield Violation(
                    "split-sum", model.name(node), what, "take QuantizeLinear and DequantizeLinear away there"
                )
                break


def operators(model: Model, target: Target) -> Iterator[Violation]:
    """What lies between codes has an integer kernel."""
    kernels = target.kernels
    for node in model.nodes:
        family = FAMILIES.get(node.op_type)
        if family is None or family in kernels.integer or not model.between_codes(node, sums=kernels.fused_sums):
            continue
        what = f"{target.name} has no integer {node.op_type}"
        yield Violation("operator", model.name(node), what, "leave it in float, without quantizers, or replace it")


def moves(model: Model, target: Target) -> Iterator[Violation]:
    """What only moves codes keeps their grid, and so do kernels that compute on one."""
    for node in model.nodes:
        shares = FAMILIES.get(node.op_type) in target.kernels.shares
        if not (shares or node.op_type in MOVES) or (grid := model.grid(node.input[0])) is None:
            continue
        for reader in model.readers.get(node.output[0], []):
            if reader.op_type == "QuantizeLinear" and not grid.same(model.grid_of(reader)):
                verb = "takes" if shares else "moves"
                what = f"{node.op_type} {verb} codes of {grid.node} to another grid, {model.name(reader)}"
                yield Violation(
                    "moved-grid", model.name(node), what, "give its input and output the same scale and zero point"
                )


def requantized(model: Model, target: Target) -> Iterator[Violation]:
    """No value is rounded twice in a row, nor between a layer and the activation that is fused into it."""
    for node in model.nodes:
        if node.op_type != "DequantizeLinear" or model.is_weight(node.input[0]):
            continue
        for reader in model.readers.get(node.output[0], []):
            if reader.op_type == "QuantizeLinear" and not model.grid_of(node).same(model.grid_of(reader)):
                what = f"{model.name(reader)} rounds again what {model.name(node)} has just read"
                yield Violation("rounded-twice", model.name(reader), what, "use one grid for the value")
        source = model.maker(node.input[0])
        before = model.maker(source.input[0]) if source is not None and source.op_type == "QuantizeLinear" else None
        fused = [r for r in model.readers.get(node.output[0], []) if r.op_type in ACTIVATIONS]
        if before is not None and before.op_type in LAYERS and fused and not model.is_weight(fused[0].output[0]):
            what = f"quantized between {before.op_type} and {fused[0].op_type}, which are one kernel otherwise"
            yield Violation("split-activation", model.name(fused[0]), what, "quantize behind the activation only")


def codes(model: Model, target: Target) -> Iterator[Violation]:
    """Codes are read by DequantizeLinear, or moved; vendors' compilers know no arithmetic on them."""
    if target.runtime.vendor_compiler:
        for node in model.nodes:
            if node.op_type != "QuantizeLinear":
                continue
            for reader in model.readers.get(node.output[0], []):
                if reader.op_type not in CODES:
                    what = f"{reader.op_type} computes on codes"
                    yield Violation(
                        "arithmetic-on-codes",
                        model.name(reader),
                        what,
                        "compute between DequantizeLinear and QuantizeLinear",
                    )


def forms(model: Model, target: Target) -> Iterator[Violation]:
    """QuantizeLinear and DequantizeLinear around ordinary operators; no kernels of one runtime, no ranges found at run time.

    The opset is one that codes of this kind have, and that the runtime reads.
    """
    newest = target.runtime.opset
    if newest is not None and model.opset > newest:
        what = f"opset {model.opset}, and {target.name!r} reads {newest} at most"
        yield Violation("opset", "the model", what, f"export with opset {newest} or earlier")
    for node in model.nodes:
        if node.op_type in OPERATOR_FORMAT:
            what = f"{node.op_type} is written as an integer operator"
            yield Violation("operator-format", model.name(node), what, "quantize in the QDQ format")
        elif node.op_type == "DynamicQuantizeLinear":
            what = "ranges are found at run time"
            yield Violation("dynamic-quantization", model.name(node), what, "calibrate: quantize statically")
        elif node.op_type == "BatchNormalization":
            yield Violation("batch-norm", model.name(node), "a batch norm is left", "fold it into the layer before it")
        elif node.op_type in CODES:
            grid = model.grid_of(node)
            needed = SIXTEEN_BITS if grid.dtype.itemsize == 2 else PER_CHANNEL if grid.per_channel else 10
            if not node.domain and model.opset < needed:
                what = f"{grid.dtype}{' per channel' if grid.per_channel else ''} in opset {model.opset}"
                yield Violation("opset", model.name(node), what, f"export with opset {needed} or later")


def shapes(model: Model, target: Target) -> Iterator[Violation]:
    """Sizes are known where the compiler needs them."""
    if target.runtime.static_shapes:
        for value in model.graph.input:
            sizes = value.type.tensor_type.shape.dim
            free = [d.dim_param or "?" for d in sizes if not d.HasField("dim_value")]
            if free and value.name not in model.constants:
                what = f"input size {', '.join(free)} is free"
                yield Violation("free-size", value.name, what, "capture with dynamic_batch=False")


RULES: tuple[Rule, ...] = (
    weights, values, biases, floats, sums, split_sums, operators, moves, requantized, codes, forms, shapes,
)  # fmt: skip
