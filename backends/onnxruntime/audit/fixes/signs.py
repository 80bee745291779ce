"""Store codes of values with the sign that the target's kernels take.

    u8 = s8 + 128       zero point + 128        (code - zero_point) * scale stays what it is

Needs:  a constant zero point, and only operators between quantizers that are known to work on either sign; for targets with
        symmetric values, zero points that become 0. Weights and biases keep their codes.
Keeps:  every value, bit for bit.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import LAYERS, MOVES, Array, Change, Editor, constant, site
from graphopt.targets import Target

# Integer operators: (codes, their zero point) among inputs, and the zero point of the result.
PORTS: dict[str, tuple[tuple[tuple[int, int], ...], int | None]] = {
    "QuantizeLinear": ((), 2),
    "DequantizeLinear": (((0, 2),), None),
    "QLinearConv": (((0, 2),), 7),
    "QLinearMatMul": (((0, 2), (3, 5)), 7),
    "QGemm": (((0, 2),), 8),
    "QLinearAdd": (((0, 2), (3, 5)), 7),
    "QLinearMul": (((0, 2), (3, 5)), 7),
    "QLinearSigmoid": (((0, 2),), 4),
    "QLinearLeakyRelu": (((0, 2),), 4),
    "QLinearSoftmax": (((0, 2),), 4),
    "QLinearGlobalAveragePool": (((0, 2),), 4),
    "QLinearAveragePool": (((0, 2),), 4),
}
TYPES = {True: np.dtype(np.int8), False: np.dtype(np.uint8)}


def store_signs(model: ir.Model, target: Target) -> list[Change]:
    """See above; for x86 and for hardware whose values have one sign."""
    if target.runtime.architecture == "aarch64":
        return []  # its kernels take both
    signed, symmetric = target.formats.codes.signed, target.formats.codes.symmetric
    moving, wanted = TYPES[not signed], TYPES[signed]
    regions, points, blocked = _regions(model, moving)
    changes, editor = [], Editor(model)
    for region in nx.connected_components(regions):
        values = [v for v in region if isinstance(v, ir.Value)]
        uses = [(node, index) for v in values for node, index in points.get(v, ())]
        if any(v in blocked for v in values) or not uses:
            continue
        delta = int(np.iinfo(wanted).min) - int(np.iinfo(moving).min)
        found = [_point(node, index, moving) for node, index in uses]
        if symmetric and signed and any(np.any(p.astype(int) + delta) for p in found):
            continue
        for (node, index), point in zip(uses, found, strict=True):
            _set(editor, node, index, (point.astype(int) + delta).astype(wanted))
        for value in values:
            _shift(editor, value, delta, wanted)
        first = min(uses, key=lambda use: str(use[0].name))[0]
        changes.append(Change(site(first), f"codes of {len(values)} values stored as {wanted} instead of {moving}"))
    return changes


def _regions(
    model: ir.Model, moving: np.dtype[np.generic]
) -> tuple[nx.Graph, dict[ir.Value, list[tuple[ir.Node, int]]], set[ir.Value]]:
    """Values whose codes must change together; where their zero points are; those that cannot change."""
    regions, blocked = nx.Graph(), set()
    points: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node in model.graph:
        ports, result = _ports(node)
        sides = [(node.inputs[c], z) for c, z in ports if c < len(node.inputs)]
        if result is not None:
            sides.append((node.outputs[0], result))
        for value, zero in sides:
            if value is None or _is_weight(value) or _point(node, zero, moving).dtype != moving:
                continue
            regions.add_node(value)
            points.setdefault(value, []).append((node, zero))
            if not _has_constant_point(node, zero):
                blocked.add(value)
        operands = [value for value, _ in sides if value in regions]
        if node.op_type.startswith("QLinear"):  # its kernels take one sign for all of them
            nx.add_path(regions, operands)
    todo = list(regions.nodes)
    while todo:
        value = todo.pop()
        if value.is_graph_output() or value.is_graph_input():
            blocked.add(value)
        maker = value.producer()
        around = [node for node, _ in value.uses()] + ([maker] if maker is not None else [])
        for node in around:
            if node.op_type in MOVES | {"Concat", "Pad"}:
                known = [*node.outputs, *(node.inputs if node.op_type == "Concat" else node.inputs[:1])]
                for other in known:
                    if other is not None and other not in regions:
                        todo.append(other)
                    if other is not None:
                        regions.add_edge(value, other)
            elif node.op_type not in PORTS and node.op_type != "QLinearConcat":
                blocked.add(value)
    return regions, points, blocked


def _ports(node: ir.Node) -> tuple[tuple[tuple[int, int], ...], int | None]:
    if node.op_type == "QLinearConcat":
        return tuple((i, i + 2) for i in range(2, len(node.inputs), 3)), 1
    return PORTS.get(node.op_type, ((), None))


def _is_weight(value: ir.Value) -> bool:
    """Constant codes that a layer multiplies with: they keep their sign."""
    codes = constant(value)
    if codes is None:
        maker = value.producer()
        if maker is None or maker.op_type != "QuantizeLinear" or constant(maker.inputs[0]) is None:
            return False
    readers = [r for node, _ in value.uses() if node.op_type == "DequantizeLinear" for r in node.outputs[0].uses()]
    direct = [node for node, i in value.uses() if i == 3 and node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm")]
    return bool(direct) or any(node.op_type in LAYERS and index > 0 for node, index in readers)


def _has_constant_point(node: ir.Node, index: int) -> bool:
    absent = index >= len(node.inputs) or node.inputs[index] is None
    return absent or constant(node.inputs[index]) is not None


def _point(node: ir.Node, index: int, otherwise: np.dtype[np.generic]) -> Array:
    """The zero point; where none is given, zero of the type the codes have, unsigned where nothing says."""
    found = constant(node.inputs[index]) if index < len(node.inputs) else None
    if found is not None:
        return found
    codes = constant(node.inputs[0])
    return np.zeros((), np.uint8 if codes is None else codes.dtype)


def _set(editor: Editor, node: ir.Node, index: int, point: Array) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, editor.constant(point, f"{node.name}_zero_point"))


def _shift(editor: Editor, value: ir.Value, delta: int, wanted: np.dtype[np.generic]) -> None:
    """Constant codes, and what is padded with, change with the others."""
    codes = constant(value)
    if codes is not None:
        shifted = editor.constant((codes.astype(int) + delta).astype(wanted), f"{value.name}_shifted")
        editor.reroute(value, shifted)
    if value.dtype is not None:
        value.dtype = ir.DataType.from_numpy(wanted)
    maker = value.producer()
    if maker is not None and maker.op_type == "Pad":
        filler = constant(maker.inputs[2]) if len(maker.inputs) > 2 else None
        _set(editor, maker, 2, np.asarray(delta if filler is None else filler.astype(int) + delta).astype(wanted))
