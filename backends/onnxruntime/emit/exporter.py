"""One call without a rule, written by torch's exporter and put into the model."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnx_ir import Value
from onnxscript.optimizer import fold_constants
from torch import Tensor, fx
from torch.export import Dim
from torch.fx.node import Node, map_arg

from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.ir.calls import gives_several
from graphopt.ir.shapes import is_free
from graphopt.utils.alone import ALONE
from graphopt.utils.errors import GraphoptError, first_line


def export_call(w: Writer, node: Node) -> Value | tuple[Value, ...]:
    """Write a call by torch's exporter.

    Raises:
        GraphoptError: it cannot; names the operator and where it is.
    """
    try:
        return _exported(w, node)
    except Exception as error:
        while error.__cause__ is not None:  # the exporter wraps its reason in pages of advice
            error = error.__cause__  # type: ignore[assignment]
        reason = first_line(error)
        missing = "No ONNX function found" in reason or "No decompositions" in reason
        raise refusal(w.graph.site(node), node, "has no translation" if missing else reason) from error


def refusal(site: str, node: Node, reason: str) -> GraphoptError:
    """What to say of a call that cannot be written."""
    colon = "" if reason.startswith("has ") else ":"
    return GraphoptError(
        f"the graph cannot be written as ONNX: {site}: {node.target}{colon} {reason}; compute it with other operators of torch"
    )


def _exported(w: Writer, node: Node) -> Value | tuple[Value, ...]:
    module, sources = _alone(w, node)
    example = tuple(_example(source) for source in sources)
    free = tuple(_free(source) for source in sources)
    with ALONE, _quiet(), torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=free, strict=False)
        program._guards_code = []
        exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False, opset_version=w.opset)
    assert exported is not None
    model = exported.model
    fold_constants(model, onnx_shape_inference=False)
    for change in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        change(model)
    outputs = _put_in(w, model, [w.values[source] for source in sources])
    return outputs if gives_several(node) else outputs[0]


def _alone(w: Writer, node: Node) -> tuple[fx.GraphModule, list[Node]]:
    """The call as a module of its tensors; the sizes among its arguments are computed within."""
    flat, copies, sources, constants = fx.Graph(), dict[Node, Node](), list[Node](), torch.nn.Module()

    def copied(n: Node) -> Node:
        if n not in copies:
            if (constant := w.constant_value(n)) is not None:
                constants.register_buffer(f"constant{len(copies)}", constant)
                copies[n] = flat.get_attr(f"constant{len(copies)}")
            elif isinstance(n.meta.get("val"), Tensor):
                sources.append(n)
                copies[n] = flat.placeholder(f"input{len(sources)}")
            else:
                copies[n] = flat.node_copy(n, copied)
        return copies[n]

    needed: list[Node] = []
    map_arg((node.args, dict(node.kwargs)), needed.append)
    inputs = dict.fromkeys(t for n in needed for t in _tensors(n))
    for source in inputs:
        copied(source)
    called = flat.node_copy(node, copied)
    results = [called]
    if gives_several(node):
        results = [flat.call_function(operator.getitem, (called, n)) for n in range(len(node.meta["val"]))]
    flat.output(tuple(results))
    return fx.GraphModule(constants, flat), sources


def _tensors(node: Node) -> list[Node]:
    """The tensors that an argument is computed from: itself, or those whose sizes it is made of."""
    if isinstance(node.meta.get("val"), Tensor):
        return [node]
    return [t for n in node.all_input_nodes for t in _tensors(n)]


def _example(source: Node) -> Tensor:
    fake = source.meta["val"]
    sizes = [int(s.node.hint) if is_free(s) else int(s) for s in fake.shape]
    return torch.zeros(sizes, dtype=fake.dtype)


def _free(source: Node) -> dict[int, Any]:
    return {d: Dim.AUTO for d, size in enumerate(source.meta["val"].shape) if is_free(size)}


def _put_in(w: Writer, model: ir.Model, inputs: list[Any]) -> tuple[Value, ...]:
    """Copy nodes and constants; the results."""
    known: dict[Value, Value] = dict(zip(model.graph.inputs, inputs, strict=True))
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        known[value] = w.store(w.fresh(f"{w.name}/{name}"), value.const_value.numpy())
    for part in model.graph:
        attributes = dict(part.attributes.items())
        outputs = [Value(name=w.fresh(f"{w.name}/{v.name}")) for v in part.outputs]
        read = [None if v is None else known[v] for v in part.inputs]
        name = w.fresh(f"{w.name}/{part.op_type}")
        w.nodes.append(ir.Node(part.domain, part.op_type, read, list(attributes.values()), outputs=outputs, name=name))
        known |= dict(zip(part.outputs, outputs, strict=True))
    return tuple(known[v] for v in model.graph.outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on standard output and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
