"""A target in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt.formats import Format
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import CodeGeneration, Runtime
from graphopt.targets.target import Target


def explain(target: Target) -> Iterator[tuple[str, str]]:
    """What there is to know of a target: facts and their names."""
    yield target.name, target.description
    yield from _formats(target.formats)
    yield from _kernels(target)
    yield "batch", "fixed" if target.runtime.static_shapes else "free where the model allows it"
    yield "artifact", _artifact(target.runtime)
    if target.runtime.opset is not None:
        yield "opset", f"the oldest that holds the graph, {target.runtime.opset} at most"
    yield "source", target.source


def _formats(formats: Formats) -> Iterator[tuple[str, str]]:
    yield "weights", _either(formats.accepted("weights"))
    yield "activations", _either(formats.accepted("activations"))
    yield "biases", "float" if formats.float_bias else "int32, with the scale of the input times that of the weight"


def _kernels(target: Target) -> Iterator[tuple[str, str]]:
    kernels = target.kernels
    functions = ["any other function of one value, by a table"] if kernels.tables else []
    computes = "integer" if isinstance(target.formats.activations, Format) else "rounds"
    yield computes, ", ".join([*sorted(kernels.integer), *functions])
    behind = "ReLU and other clips into the operator before them"
    yield "fuses", f"{behind}, a sum into the last layer that it adds" if kernels.fused_sums else behind
    yield "moves codes", ", ".join(sorted(kernels.moves))
    if kernels.float_layers:
        plain = target.formats.rest or ("float" if target.runtime.vendor_compiler else "float32")
        between = ", between DequantizeLinear and QuantizeLinear" if target.runtime.name == "onnxruntime" else ""
        yield "else", f"{plain}{between}"
    else:
        yield "else", "nothing: every layer is integer"
    yield "channels", f"pruned and factorized to multiples of {kernels.channel_multiple}"


def _either(formats: Sequence[object]) -> str:
    first, *others = map(str, formats)
    return f"{first}; also {', '.join(others)}" if others else first


def _artifact(runtime: Runtime) -> str:
    if runtime.vendor_compiler:
        return "ONNX with QuantizeLinear and DequantizeLinear, for the vendor's compiler"
    if runtime.code is not None:
        return _compiled(runtime.code)
    if runtime.name == "packed":
        return "packed codes with their formats, and the graph that reads them; run by simulation"
    if runtime.name == "executorch":
        return "a program (.pte) with XNNPACK, run by ExecuTorch"
    if runtime.name == "onnxruntime":
        return "ONNX with QuantizeLinear and DequantizeLinear, run by ONNX Runtime"
    return f"what the backend of {runtime.name!r} makes"


def _compiled(code: CodeGeneration) -> str:
    if code.device != "cpu":
        source = {"cuda": "CUDA", "opencl": "OpenCL"}[code.device]
        return f"{source} source ({code.cpu or 'any device'}) in a library for {code.triple}, run by TVM"
    if "none" in code.triple.split("-"):
        return f"C and objects ({code.triple}, {code.cpu}), for a program of yours"
    return f"machine code ({code.triple or 'of this machine'}, {code.cpu or 'its CPU'}), run by TVM"
