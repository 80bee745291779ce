"""Audit and fix anyone's ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.backends.onnxruntime.artifact import ONE_FILE, open_session
from graphopt.backends.onnxruntime.audit import compare
from graphopt.backends.onnxruntime.audit.case import Case
from graphopt.backends.onnxruntime.audit.fixes import FIXES, FORMS, STORAGE, sweep
from graphopt.backends.onnxruntime.audit.fixes.ranges import measure_ranges
from graphopt.backends.onnxruntime.audit.float_regions import Origins, regions
from graphopt.backends.onnxruntime.audit.reading import Kind, Reading, read
from graphopt.backends.onnxruntime.audit.reasons import explain
from graphopt.backends.onnxruntime.audit.saturation import saturating
from graphopt.backends.onnxruntime.audit.work import Feeds, macs, random_inputs, shapes_inside, values
from graphopt.evaluation.compliance.model import FILE, Model
from graphopt.evaluation.file_audit import FileAudit, Fixed
from graphopt.evaluation.float_regions import FloatNode, FloatReason, FloatRegion
from graphopt.ir.passes import Change
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_file, write_atomically

LAYOUT = FloatReason(
    "layout",
    "the runtime changes the layout of codes through float, next to what is float",
    "fix the float regions around it",
)
REQUANTIZED = FloatReason(
    "rounded-twice", "codes are read and rounded again to another grid", "use one grid for the value"
)


def audit_file(path: Path, target: Target, shapes: Sequence[Sequence[int]] | None = None) -> FileAudit:
    """See `graphopt.audit`."""
    model = Model.read(path)
    path = path / FILE if path.is_dir() else path
    feeds = random_inputs(open_session(path, defaults=True, rewriting=False), shapes)
    return _audit(path, model, target, feeds)


def _audit(path: Path, model: Model, target: Target, feeds: Feeds) -> FileAudit:
    reading, inside = read(path, model, target), shapes_inside(path, model, feeds)
    origins, work = Origins(model, reading), macs(model, inside)
    integer = [name for name in work if origins.kind(origins.by_name[name]) is Kind.INTEGER]
    found = FileAudit(
        path, target, reading.how, {name: value.shape for name, value in feeds.items()}, sum(work[n] for n in integer),
        sum(work.values()), conversions=sum(1 for _ in reading.of(Kind.CONVERTS)),
        saturating=saturating(reading, origins, target.runtime),
    )  # fmt: skip
    for node in reading.nodes:
        found.operators[node.op_type] = found.operators.get(node.op_type, 0) + 1
    for region in regions(origins):
        cases = [Case(model, node, target, inside) for node in region.originals]
        nodes = [
            FloatNode(model.name(c.node), c.node.op_type, work.get(model.name(c.node), 0), explain(c)) for c in cases
        ]
        found.float_regions.append(FloatRegion(tuple(nodes or _unnamed(region.runs, reading)), region.conversions))
    found.float_regions.sort(key=lambda region: -region.macs)
    return found


def _unnamed(runs: list[onnx.NodeProto], reading: Reading) -> list[FloatNode]:
    """Operators that the file does not have; a conversion alone is one that rounds twice."""
    reasons = (REQUANTIZED if reading.kind(node) is Kind.CONVERTS else LAYOUT for node in runs)
    return [FloatNode(n.name or n.output[0], n.op_type, 0, reason) for n, reason in zip(runs, reasons, strict=True)]


def fix(found: FileAudit, path: Path, calibration: Any, example: Any, measure: bool) -> Fixed:
    """See `FileAudit.fix`."""
    check_file(path)
    session = open_session(found.path, defaults=True, rewriting=False)
    feeds = random_inputs(session, list(found.shapes.values()))
    taken = compare.signature(session, feeds)
    batches = None if calibration is None else compare.calibration(calibration, taken)
    given = feeds if example is None else compare.example(example, taken)
    model = load(found.path, feeds)
    applied = rewrite(model, found.target, batches)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        draft = Path(folder) / path.name
        ir.save(model, draft)
        after = _audit(draft, Model.read(draft), found.target, feeds)
        gap = compare.difference(found.path, draft, given, found.target.runtime)
        result = Fixed(draft, found, after, applied, gap)
        if measure:
            compare.time(result, given)
        write_atomically(path, draft.read_bytes())
    result.path = after.path = path
    return result


def rewrite(model: ir.Model, target: Target, batches: list[Feeds] | None) -> list[tuple[str, Change]]:
    """Apply every fix; where ranges were measured, those that they make possible once more."""
    applied: list[tuple[str, Change]] = []
    for name in (*FORMS, *(() if batches is None else ("ranges", *FORMS)), *STORAGE):
        changes = FIXES[name](model, target) if name != "ranges" else measure_ranges(model, target, batches or [])
        applied += [(name, change) for change in changes]
        sweep(model)
    model.graph.sort()
    return applied


def load(path: Path, feeds: Feeds) -> ir.Model:
    """A file for rewriting, with the shapes that means and products are rewritten by.

    Raises:
        InputError: its weights do not fit into one file.
    """
    model = ir.load(path)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > ONE_FILE:
        raise InputError(
            f"{path} has {size:,} bytes of weights; files of more than two gigabytes can be audited, not fixed"
        )
    ir.external_data.load_to_model(model)
    unknown = {
        str(value.name): value
        for node in model.graph
        if node.op_type in ("ReduceMean", "MatMul") and (value := node.inputs[0]) is not None and value.shape is None
    }
    for name, array in values(path, list(unknown), feeds).items():
        unknown[name].shape = ir.Shape(array.shape)
        unknown[name].type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return model
