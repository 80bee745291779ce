"""Why an operator of a file computes in float: rules, most specific first, each with what would fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from graphopt.backends.onnxruntime.audit.case import (
    Case,
    adds_constant,
    any_quantizer,
    axes,
    code_readers,
    is_written,
    readers_behind,
    shown,
)
from graphopt.backends.onnxruntime.audit.fixes.gates import WRITERS
from graphopt.backends.onnxruntime.audit.fixes.moves import AVERAGES, UNIT
from graphopt.backends.onnxruntime.audit.fixes.readers import TAKES_CODES
from graphopt.backends.onnxruntime.audit.operators import REASONS
from graphopt.evaluation.compliance.model import ACTIVATIONS, LAYERS, attribute
from graphopt.evaluation.compliance.rules import MOVES
from graphopt.evaluation.float_regions import FloatReason
from graphopt.lowering.signs import disagreement

CALIBRATE = "give --calibration, so that its range can be measured"


Rule = Callable[[Case], "FloatReason | None"]


def explain(case: Case) -> FloatReason:
    """The first rule that says why."""
    return next(_found(case))


def _found(case: Case) -> Iterator[FloatReason]:
    for rule in RULES:
        if (reason := rule(case)) is not None:
            yield reason
    yield FloatReason("neighbours", "the operators around it are float", "fix those first")


# ---- The operator ---------------------------------------------------------------------------------------------------


def mean(case: Case) -> FloatReason | None:
    if case.node.op_type != "ReduceMean":
        return None
    found, rank = axes(case), len(case.shapes.get(case.node.input[0], ()))
    if rank > 2 and found is not None and sorted(a % rank for a in found) == list(range(2, rank)):
        why = "ReduceMean has no integer kernel, and GlobalAveragePool, which is the same here, has"
        return FloatReason("reduce-mean", why, "write it as GlobalAveragePool", "means")
    return FloatReason("reduce-mean", REASONS["ReduceMean"], "average over the whole image, or leave it in float")


def gate(case: Case) -> FloatReason | None:
    name = case.node.op_type
    if name not in WRITERS or (name == "Swish" and (attribute(case.node, "alpha") or 1) != 1):
        return None
    if any(grid is None for grid in case.into.values()):
        return None  # first it needs codes to read
    how = {"Tanh": "as Sigmoid between rescaled grids", "Swish": "as a product with Sigmoid"}.get(
        name, "with an addition that saturates"
    )
    return FloatReason("no-kernel", f"{name} has no integer kernel", f"write it {how}", "gates")


def no_kernel(case: Case) -> FloatReason | None:
    name = case.node.op_type
    known = case.family in case.target.kernels.integer or name in MOVES or name in ACTIVATIONS or name in WRITERS
    if known and name != "ConvTranspose":
        return None
    if name == "BatchNormalization":
        return FloatReason("batch-norm", "a batch norm is left", "fold it into the layer before it, and quantize again")
    why = REASONS.get(name, f"{name} has no integer kernel")
    return FloatReason("no-kernel", why, "leave it in float, or replace it in the model")


def dynamic(case: Case) -> FloatReason | None:
    if any(grid is not None and (grid.scale is None or grid.zero_point is None) for grid in case.into.values()):
        return FloatReason("dynamic", "a scale or zero point is computed at run time", "calibrate: quantize statically")
    return None


# ---- Its quantizers -------------------------------------------------------------------------------------------------


def input_without_quantizer(case: Case) -> FloatReason | None:
    grids = case.into
    missing = [value for value, grid in grids.items() if grid is None]
    if not missing:
        return None
    name = case.node.op_type
    shared = [v for v in missing if any(r.op_type == "QuantizeLinear" for r in case.model.readers.get(v, []))]
    if shared and name in TAKES_CODES:
        why = f"{shown(shared)} is quantized for others, and read here in float"
        return FloatReason("read-in-float", why, "let it read the same codes", "readers")
    if len(missing) == len(grids) and name in MOVES and case.out:
        return FloatReason(
            "no-quantizer", f"{name} has no quantizer in front", "put the one behind it in front, too", "moves"
        )
    before = {maker.op_type for value in missing if (maker := case.model.maker(value)) is not None}
    if before & (MOVES | AVERAGES | UNIT):
        why = f"no quantizer behind the {', '.join(sorted(before & (MOVES | AVERAGES | UNIT)))} in front of it"
        return FloatReason("no-quantizer", why, "put one there, on the grid that follows", "moves")
    if not any_quantizer(case.model):
        return FloatReason(
            "not-quantized", "the file has no quantizers", f"quantize it: graphopt.optimize, or {CALIBRATE}", "ranges"
        )
    why = f"{shown(missing)} {'has' if len(missing) == 1 else 'have'} no quantizer"
    return FloatReason("no-quantizer", why, CALIBRATE, "ranges")


def wide(case: Case) -> FloatReason | None:
    grids = [*case.into.values(), *case.out]
    sixteen = any(grid is not None and grid.dtype.itemsize == 2 for grid in grids)
    if not sixteen or case.target.runtime.vendor_compiler:
        return None
    return FloatReason("16-bit", "codes of 16 bits have no kernels on CPUs", "quantize to 8 bits, or leave it in float")


def channels(case: Case) -> FloatReason | None:
    if any(grid is not None and grid.per_channel for grid in (*case.into.values(), *case.out)):
        return FloatReason("per-channel-values", "a value has a scale per channel", "quantize values per tensor")
    if case.node.op_type not in LAYERS or len(case.node.input) < 2:
        return None
    weight = case.model.grid(case.node.input[1])
    if weight is None or not weight.per_channel:
        return None
    axis = LAYERS[case.node.op_type]
    if case.node.op_type == "Gemm" and not attribute(case.node, "transB"):
        axis = 1
    rank = weight.codes.ndim if weight.codes is not None else 2
    if weight.axis % rank != axis % rank:
        why = (
            f"the weight has scales along dimension {weight.axis}, and its output channels are dimension {axis % rank}"
        )
        return FloatReason("per-channel-weights", why, "quantize it per output channel, or per tensor")
    return None


def float_weight(case: Case) -> FloatReason | None:
    if case.node.op_type not in LAYERS or len(case.node.input) < 2 or not case.model.is_weight(case.node.input[1]):
        return None
    if case.model.grid(case.node.input[1]) is not None:
        return None
    return FloatReason("float-weight", "the weight is float", "quantize it; constants need no calibration", "weights")


def bias(case: Case) -> FloatReason | None:
    if case.node.op_type not in LAYERS or len(case.node.input) < 3 or not case.node.input[2]:
        return None
    x, w, b = (case.model.grid(value) for value in case.node.input[:3])
    if x is None or w is None or x.scale is None or w.scale is None or x.per_channel:
        return None
    remedy = "store int32 with scale = input scale x weight scale"
    if b is None or b.scale is None:
        return FloatReason("bias", "the bias is float", remedy, "biases")
    fits = b.dtype == np.int32 and np.allclose(b.scale, x.scale * w.scale.reshape(-1), rtol=1e-4, atol=0)
    return None if fits else FloatReason("bias", "the bias is not on the grid of the sums", remedy, "biases")


def added_constant(case: Case) -> FloatReason | None:
    if case.node.op_type != "Add":
        return None
    makers = [case.model.maker(value) for value in case.node.input]
    if any(m is not None and m.op_type == "MatMul" for m in makers) and any(
        case.model.is_weight(v) for v in case.node.input
    ):
        return FloatReason(
            "bias-behind-matmul", "a constant is added to MatMul in float", "fold it: Gemm has a bias", "sums"
        )
    return None


def result_without_quantizer(case: Case) -> FloatReason | None:
    readers = case.model.behind(case.node)
    others = [r for r in readers if r.op_type != "QuantizeLinear"]
    if not others and not case.model.leaves(case.node):
        return None
    if not others:
        why, remedy = "its result leaves the model as float", "quantize it, if its last rounding may be 8 bits"
        return FloatReason("answer", why, remedy, "ranges")
    name = case.node.op_type
    if name in MOVES | AVERAGES | UNIT and case.into:
        return FloatReason("no-quantizer", "its result is not quantized", "its grid follows from the input", "moves")
    if all(r.op_type in MOVES and is_written(case.model, r) for r in others):
        why = f"it is quantized behind the {others[0].op_type} only"
        return FloatReason("no-quantizer", why, "put the quantizer in front, too", "moves")
    who = ", ".join(sorted({r.op_type for r in others}))
    if len(readers) == 1 and others[0].op_type == "Add" and name == "MatMul" and adds_constant(case, others[0]):
        return FloatReason(
            "bias-behind-matmul", "a constant is added to MatMul in float", "fold it: Gemm has a bias", "sums"
        )
    return FloatReason("no-quantizer", f"its result is read by {who} in float", CALIBRATE, "ranges")


def activation_grid(case: Case) -> FloatReason | None:
    if case.target.runtime.vendor_compiler or case.target.formats.codes.symmetric:
        return None
    readers = [r for v in case.node.output for r in case.model.readers.get(v, [])]
    acts = case.node.op_type in ACTIVATIONS or any(r.op_type in ACTIVATIONS for r in readers)
    for grid in case.out if acts else []:
        if grid.zero_point is not None and np.any(grid.zero_point != np.iinfo(grid.dtype).min):
            why = "the grid behind its activation has codes for values that never come, so that its end is not the activation's"
            return FloatReason("activation-grid", why, "let the lowest code stand for zero", "ends")
    return None


# ---- What its quantizers say ----------------------------------------------------------------------------------------


def signs(case: Case) -> FloatReason | None:
    grids = [(value, grid) for value, grid in case.into.items() if grid is not None]
    types = {str(grid.dtype) for _, grid in grids} | {str(grid.dtype) for grid in case.out}
    if len(types) > 1 and (why := disagreement(types)):
        return FloatReason("mixed-signs", why, "give all one sign", "signs")
    runtime = case.target.runtime
    if runtime.vendor_compiler:
        return None
    weight = case.model.grid(case.node.input[1]) if case.node.op_type in LAYERS else None
    if runtime.architecture == "aarch64" and weight and (why := disagreement(types, str(weight.dtype))):
        return FloatReason("mixed-signs", why, "store the weight as int8, 128 codes lower")
    if types == {"int8"} and runtime.architecture == "x86_64":
        shared = [value for value, _ in grids if code_readers(case.model, value) > 1]
        shared += [v for v in case.node.output if sum(readers_behind(case.model, v)) > 1]
        where = f", and {shown(shared)} {'has' if len(shared) == 1 else 'have'} several readers" if shared else ""
        why = f"activations are s8{where}: on x86 ONNX Runtime then leaves what reads and makes them in float"
        return FloatReason("signed-values", why, "store them as u8, 128 codes higher", "signs")
    return None


def moved_grid(case: Case) -> FloatReason | None:
    if case.node.op_type not in MOVES:
        return None
    (_, grid), *_ = case.into.items() or [("", None)]
    if grid is not None and any(not grid.same(out) for out in case.out):
        return FloatReason(
            "moved-grid", "its input and output have different grids", "give both one scale and zero point"
        )
    return None


def shared_quantizer(case: Case) -> FloatReason | None:
    """A Relu between two quantizers: the runtime takes it into the layer only where nothing is rounded between."""
    if case.node.op_type in ACTIVATIONS and case.into and all(g is not None for g in case.into.values()):
        why = f"quantized between the layer and {case.node.op_type}, which are one kernel otherwise"
        return FloatReason("split-activation", why, "quantize behind the activation only", "splits")
    return None


RULES: tuple[Rule, ...] = (
    mean, gate, no_kernel, dynamic, added_constant, input_without_quantizer, wide, channels, float_weight, bias, shared_quantizer,
    result_without_quantizer, activation_grid, signs, moved_grid,
)  # fmt: skip
