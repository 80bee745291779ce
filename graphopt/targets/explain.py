"""A target in words."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.formats import Format
from graphopt.targets.target import Target


def explain(target: Target) -> Iterator[tuple[str, str]]:
    """What there is to know of a target: facts and their names."""
    yield target.name, target.description
    yield "weights", _either(*target.known("weights"))
    yield "values", _either(*target.known("values"))
    functions = ["any other function of one value, by a table"] if target.tables else []
    yield (
        "integer" if isinstance(target.activations, Format) else "rounds",
        ", ".join([*sorted(target.integer), *functions]),
    )
    yield "fuses", _fusions(target)
    yield "moves codes", ", ".join(sorted(target.moves))
    yield (
        "else",
        ("float32" if target.runtime == "tvm" else "float, between DequantizeLinear and QuantizeLinear")
        if target.float_layers
        else "nothing: every layer is integer",
    )
    yield "channels", f"pruned and factorized to multiples of {target.channel_multiple}"
    yield "biases", "float" if target.float_bias else "int32, on the grid of the layer's sums"
    yield "batch", "fixed" if target.static_shapes else "free where the model allows it"
    yield "artifact", _artifact(target)
    yield "source", target.source


def _fusions(target: Target) -> str:
    behind = "ReLU and other clips into the operator before them"
    return f"{behind}, a sum into the last layer that it adds" if target.fused_sums else behind


def _either(first: object, *others: object) -> str:
    return f"{first}; also {', '.join(map(str, others))}" if others else str(first)


def _artifact(target: Target) -> str:
    if target.vendor_compiler:
        return "ONNX with QuantizeLinear and DequantizeLinear, for the vendor's compiler"
    if target.kernels != "cpu":
        source = {"cuda": "CUDA", "opencl": "OpenCL"}[target.kernels]
        return f"{source} source ({target.cpu or 'any device'}) in a library for {target.triple}, run by TVM"
    if target.runtime == "packed":
        return "packed codes with their formats, and the graph that reads them; run by simulation"
    if target.runtime == "tvm":
        if "none" in target.triple.split("-"):
            return f"C and objects ({target.triple}, {target.cpu}), for a program of yours"
        return f"machine code ({target.triple or 'of this machine'}, {target.cpu or 'its CPU'}), run by TVM"
    return "ONNX with QuantizeLinear and DequantizeLinear, run by ONNX Runtime"
