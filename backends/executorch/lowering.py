"""From a graph to an artifact: XNNPACK's form, a program with one batch size, a file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from graphopt.artifacts.lowered import describe, temporary_folder
from graphopt.artifacts.sliced import BATCH
from graphopt.backends.executorch.artifact import AUDIT, MODEL, ExecutorchArtifact
from graphopt.backends.executorch.compiling import Delegated
from graphopt.backends.executorch.form import legalize
from graphopt.backends.executorch.programs import exported
from graphopt.backends.executorch.reading import audited, check_kernels, check_operators
from graphopt.backends.executorch.running import Program
from graphopt.backends.executorch.runtime import modules, operators
from graphopt.formats.blocks import DEQUANTIZE_BLOCKS
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.lowering.static_batch import check_only_batch, check_slices, example_batch, fix_batch
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

PROGRAMS = "programs of ExecuTorch"  # what has fixed shapes, as refusals say it


def check_graph(graph: Graph) -> None:
    """Whether a graph could be lowered as it was captured.

    Raises:
        InputError: a size other than the batch is free; a layer that has no kernel; an input or result is float64 or bfloat16.
    """
    check_only_batch(graph, PROGRAMS)
    check_operators(graph)
    for name, node in [
        *zip(graph.input_names, graph.inputs, strict=True),
        *zip(graph.output_names, graph.outputs, strict=True),
    ]:
        if (dtype := node.meta["val"].dtype) in (torch.float64, torch.bfloat16):
            raise InputError(
                f"{name!r} is {dtype_name(dtype)}, and XNNPACK computes in float32; give the model and its inputs as .float()"
            )


def lower(graph: Graph, target: Target, *, name: str = "model", batch: int | None = None) -> ExecutorchArtifact:
    """Make a `.pte` of a graph, in a temporary folder.

    A simulated graph is deployed to integers first; a float graph stays float. The graph itself is not changed.

    Args:
        batch: samples of one call of the program, where the graph's batch is free. None: those of its example.

    Raises:
        InputError: ExecuTorch is missing; a free size other than the batch, samples that are mixed; codes of more than 8 bits,
            float64; an operator without a kernel, named with the layer it comes from.
        GraphoptError: ExecuTorch refuses the program, or fails to run it.
    """
    modules()
    check_graph(graph)
    samples = (batch or example_batch(graph)) if graph.dynamic_batch else None
    if samples is not None:
        check_slices(graph, PROGRAMS)
    prepared = formed(graph, samples)
    program, written = exported(prepared)
    delegated = Delegated(program)
    check_kernels(written, delegated.calls, operators())
    content = delegated.content()
    Program(content, MODEL).check([t.numpy() for t in prepared.example.tensors()])
    folder = temporary_folder()
    (folder / MODEL).write_bytes(content)
    options: dict[str, Any] = {BATCH: samples, AUDIT: asdict(audited(written, delegated.calls, samples or 1))}
    manifest = describe(graph, target, folder, model=name, options=options)
    return ExecutorchArtifact(folder, manifest, temporary=True, graph=graph)


def formed(graph: Graph, samples: int | None) -> Graph:
    """A copy of a graph in XNNPACK's form, with this batch size where its own is free."""
    with torch.no_grad():
        deployed = deploy(graph)
        if (packed := next(iter(deployed.calls(DEQUANTIZE_BLOCKS)), None)) is not None:
            raise InputError(
                f"{deployed.site(packed)}: XNNPACK has no kernel for weights in blocks; quantize values too (leave out "
                "weight_only), or use a target of ONNX Runtime (arm, x86)"
            )
        if samples is not None:
            deployed = fix_batch(deployed, samples)
        legalize(deployed)
    return deployed
