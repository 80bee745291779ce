"""Rewrites of the exported ONNX model that have no counterpart in ATen.

Pad on the image only, in front of Conv    becomes part of the convolution's own padding, which may differ from side to side
                                           in ONNX (in ATen it may not); quantizers between the two commute with padding by
                                           zero, because every grid holds zero exactly
MaxPool that rounds its size up            has padding at the end in place of `ceil_mode`, for which ONNX Runtime derives another
                                           size than torch where a last window would begin in the padding
    Conv with a bias of zeros          the exporter writes them for a convolution that has none, which hides it from the integer
                                       kernels, as they are no integers
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def drop_zero_biases(model: ir.Model) -> None:
    """Take away biases that are constant zeros, or zero expanded."""
    for conv in [n for n in model.graph if n.op_type in ("Conv", "ConvTranspose") and len(n.inputs) > 2]:
        bias = conv.inputs[2]
        producer = bias.producer() if bias is not None else None
        if producer is not None and producer.op_type == "Expand":
            bias = producer.inputs[0]
        if bias is not None and not np.any(_constant(bias, default=1.0)):
            conv.resize_inputs(2)


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


def write_out_ceil_mode(model: ir.Model) -> None:
    """Let maximum pools of images of known size round down, with as much padding at the end as gives torch's size."""
    for pool in [n for n in model.graph if n.op_type == "MaxPool" and _int(n, "ceil_mode")]:
        kernel = list(_ints(pool, "kernel_shape") or [])
        ones, zeros = [1] * len(kernel), [0] * 2 * len(kernel)
        image, result = (_sizes(value)[2:] for value in (pool.inputs[0], pool.outputs[0]))
        strides, dilations = (list(_ints(pool, name) or ones) for name in ("strides", "dilations"))
        begin = list(_ints(pool, "pads") or zeros)[: len(kernel)]
        if None in image or None in result or len(image) != len(kernel):
            continue
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        used = [(n - 1) * s + r for n, s, r in zip(result, strides, reach, strict=True)]
        end = [max(u - i - b, 0) for u, i, b in zip(used, image, begin, strict=True)]
        whole = [i + b + e - r for i, b, e, r in zip(image, begin, end, reach, strict=True)]
        if [w // s + 1 for w, s in zip(whole, strides, strict=True)] != result or any(map(int.__ge__, end, kernel)):
            continue
        pool.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])
        pool.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _sizes(value: ir.Value | None) -> list[Any]:
    """The sizes of a value, None where one is free."""
    shape = value.shape if value is not None else None
    return [size if isinstance(size, int) else None for size in shape] if shape is not None else [None]


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
