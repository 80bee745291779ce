"""Zero padding of an image in front of convolutions becomes their own, which in ONNX may differ from side to side.

Quantizers between the two commute with padding by zero, because every grid holds zero exactly. ATen's convolutions have no such
padding, so this is done to the ONNX model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def fold_pads(model: ir.Model) -> None:
    """Move zero padding of images into the convolutions that read it."""
    for pad in [n for n in model.graph if n.op_type == "Pad"]:
        amounts = _image_padding(pad)
        readers = _convolutions(pad.outputs[0])
        if amounts is None or not readers:
            continue
        for conv in readers:
            if _string(conv, "auto_pad") not in ("", "NOTSET"):
                break
        else:
            for conv in readers:
                half = len(amounts) // 2
                kept = list(_ints(conv, "pads") or [0] * len(amounts))
                if len(kept) != 2 * half:
                    break
                conv.attributes["pads"] = ir.AttrInt64s("pads", [a + k for a, k in zip(amounts, kept, strict=True)])
            source = pad.inputs[0]
            assert source is not None
            for node, index in list(pad.outputs[0].uses()):
                node.replace_input_with(index, source)
                _correct_sizes(node, source)
            model.graph.remove(pad, safe=True)


def _correct_sizes(node: ir.Node, source: ir.Value) -> None:
    """Quantizers between a padding that is gone and its convolutions have the sizes of the image without it.

    ONNX Runtime's own kernels do not mind wrong sizes, QNN does not take the convolution.
    """
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node.outputs[0].shape = source.shape
        for reader, _ in node.outputs[0].uses():
            _correct_sizes(reader, source)


def _image_padding(pad: ir.Node) -> list[int] | None:
    """Begin and end of every image dimension; None where batch or channels are padded, or not with a constant zero."""
    if _string(pad, "mode") not in ("", "constant") or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
        return None
    amounts = _constant(pad.inputs[1])
    if amounts is None:
        return None
    values = [int(v) for v in amounts]
    half = len(values) // 2
    begin, end = values[:half], values[half:]
    if any(begin[:2]) or any(end[:2]) or min(values) < 0:
        return None
    filler = _constant(pad.inputs[2]) if len(pad.inputs) > 2 else np.zeros(())
    if filler is None:
        return None
    zero = _zero_code(pad)
    return begin[2:] + end[2:] if zero is not None and float(filler) == zero else None


def _zero_code(pad: ir.Node) -> float | None:
    """What stands for zero in the padded value: 0, or the zero point its readers decode it with."""
    found = set()
    for node, _ in pad.outputs[0].uses():
        if node.op_type == "DequantizeLinear":
            point = _constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
            found.add(None if point is None else float(point))
        else:
            found.add(0.0)
    return found.pop() if len(found) == 1 else None


def _convolutions(value: ir.Value | None) -> list[ir.Node] | None:
    """The convolutions that read the value, through quantizers; None where anything else does."""
    assert value is not None
    found: list[ir.Node] = []
    if value.is_graph_output():
        return None
    for node, index in value.uses():
        if node.op_type == "Conv" and index == 0:
            found.append(node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 0:
            behind = _convolutions(node.outputs[0])
            if behind is None:
                return None
            found += behind
        else:
            return None
    return found


def _constant(value: ir.Value | None, default: Any = None) -> Any:
    """What a value is where it is constant (through casts), else `default`."""
    if value is None:
        return default
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type in ("Cast", "CastLike"):
        return _constant(producer.inputs[0], default)
    return default


def _string(node: ir.Node, name: str) -> str:
    attribute = node.attributes.get(name)
    return "" if attribute is None else str(attribute.as_string())


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _ints(node: ir.Node, name: str) -> list[int] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else list(attribute.as_ints())
