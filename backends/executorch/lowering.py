"""From a graph to an artifact: XNNPACK's form, a program with one batch size, a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.report import FloatOperator
from graphopt.artifacts.sliced import BATCH
from graphopt.backends.executorch.artifact import AUDIT, MODEL, ExecutorchArtifact
from graphopt.backends.executorch.compiling import INTEGER, PORTABLE, Call, compiled
from graphopt.backends.executorch.form import legalize
from graphopt.backends.executorch.programs import exported
from graphopt.backends.executorch.runtime import modules, operators
from graphopt.formats.blocks import DEQUANTIZE_BLOCKS
from graphopt.ir.cost import layer_macs
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.lowering.static_batch import check_only_batch, check_slices, example_batch, fix_batch
from graphopt.targets import Target
from graphopt.utils.errors import InputError

PROGRAMS = "programs of ExecuTorch"  # what has fixed shapes, as refusals say it
SHOWN = 5  # operators that an error lists
CONVERSIONS = ("quantize_per", "dequantize_per")


def check_graph(graph: Graph) -> None:
    """Whether a graph could be lowered as it was captured.

    Raises:
        InputError: a size other than the batch is free; an input or result is float64.
    """
    check_only_batch(graph, PROGRAMS)
    for name, node in [
        *zip(graph.input_names, graph.inputs, strict=True),
        *zip(graph.output_names, graph.outputs, strict=True),
    ]:
        if node.meta["val"].dtype == torch.float64:
            raise InputError(
                f"{name!r} is float64, and XNNPACK computes in float32; give the model and its inputs as .float()"
            )


def lower(graph: Graph, target: Target, *, name: str = "model", batch: int | None = None) -> ExecutorchArtifact:
    """Make a `.pte` of a graph, in a temporary folder.

    A simulated graph is deployed to integers first; a float graph stays float. The graph itself is not changed.

    Args:
        batch: samples of one call of the program, where the graph's batch is free. None: those of its example.

    Raises:
        InputError: ExecuTorch is missing; a free size other than the batch, samples that are mixed; codes of more than 8 bits,
            float64; an operator without a kernel, named with the layer it comes from.
        GraphoptError: ExecuTorch refuses the program.
    """
    modules()
    check_graph(graph)
    samples = (batch or example_batch(graph)) if graph.dynamic_batch else None
    if samples is not None:
        check_slices(graph, PROGRAMS)
    prepared = formed(graph, samples)
    program, sites = exported(prepared)
    content, calls = compiled(program)
    _check_kernels(calls, sites)
    folder = temporary_folder()
    (folder / MODEL).write_bytes(content)
    found = _audit(prepared, calls, sites, samples or 1)
    options: dict[str, Any] = {BATCH: samples, AUDIT: asdict(found)}
    manifest = describe(graph, target, folder, model=name, options=options)
    return ExecutorchArtifact(folder, manifest, temporary=True, graph=graph)


def formed(graph: Graph, samples: int | None) -> Graph:
    """A copy of a graph in XNNPACK's form, with this batch size where its own is free."""
    with torch.no_grad():
        deployed = deploy(graph)
        if (packed := next(iter(deployed.calls(DEQUANTIZE_BLOCKS)), None)) is not None:
            raise InputError(
                f"{deployed.site(packed)}: XNNPACK has no kernel for weights in blocks; quantize values too (leave out weight_only), "
                "or use a target of ONNX Runtime (arm, x86)"
            )
        if samples is not None:
            deployed = fix_batch(deployed, samples)
        legalize(deployed)
    return deployed


def _check_kernels(calls: list[Call], sites: Mapping[str, str]) -> None:
    """Raise `InputError` where the program calls what the runtime has no kernel for."""
    known = {name.partition("::")[2].partition(".")[0] for name in operators()}
    missing = {
        f"{sites.get(call.name, call.name)} ({call.operator})": None
        for call in calls
        if call.where == PORTABLE and call.operator.split(".")[1] not in known and "sym_size" not in call.operator
    }
    if missing:
        named = list(missing)
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        raise InputError(
            f"ExecuTorch's runtime has no kernel for {', '.join(named[:SHOWN])}{more}; write that otherwise, or use a target of ONNX "
            "Runtime or TVM (arm, tvm-arm64)"
        )


def _audit(graph: Graph, calls: list[Call], sites: Mapping[str, str], samples: int) -> Audit:
    """What of a graph in XNNPACK's form is computed in integer, by the calls of the program that was made of it."""
    macs = {node: count // samples for node, count in layer_macs(graph).items()}
    nodes = {node.name: node for node in graph.calls()}
    found = Audit(total_macs=sum(macs.values()))
    for call in calls:
        found.operators[call.operator] = found.operators.get(call.operator, 0) + 1
        node, site = nodes.get(call.name), sites.get(call.name, call.name)
        own = (
            macs.pop(node, 0)
            if node is not None and call.operator.split(".")[1] not in ("permute_copy", "view_copy")
            else 0
        )
        if any(name in call.operator for name in CONVERSIONS):
            continue
        if call.where != INTEGER:
            found.floating.append(FloatOperator(site, call.operator.split(".")[1], _reason(graph, node, call), own))
        elif own:
            found.integer.append(site)
            found.integer_macs += own
    return found


def _reason(graph: Graph, node: Node | None, call: Call) -> str:
    left = graph.fact(node, LEFT) if node is not None else None
    if left is not None:
        return str(left)
    return (
        "XNNPACK does not take it"
        if call.where == PORTABLE
        else "XNNPACK has no integer kernel for it, or its values are float"
    )
