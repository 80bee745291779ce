"""From a program of `torch.export` to a `.pte`: what XNNPACK takes goes to it, the rest to ExecuTorch's own kernels.

    content, calls = compiled(program)

What is computed where is read back from the program that was made, call by call.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.fx.node import Node

from graphopt.backends.executorch.runtime import modules
from graphopt.utils.alone import ALONE
from graphopt.utils.errors import GraphoptError, first_line
from graphopt.utils.silence import ERR, OUT, silent

IMPLICIT = "IS_IMPLICIT_Q_DQ_TAG"  # of quantizers that are part of a kernel
PORTABLE, FLOAT, INTEGER = "portable", "xnnpack float", "xnnpack integer"


@dataclass(frozen=True)
class Call:
    """One call of the program that was made.

    Attributes:
        name: of the call that it comes from in the graph that was exported; empty where nothing says so.
        operator: such as `aten.convolution.default`. where: `xnnpack integer`, `xnnpack float` or `portable`.
    """

    name: str
    operator: str
    where: str


def compiled(program: ExportedProgram) -> tuple[bytes, list[Call]]:
    """The content of the file, and its calls in order; quantizers that stand alone are among those of `xnnpack integer`.

    Raises:
        GraphoptError: ExecuTorch refuses the program.
    """
    modules()
    with ALONE, warnings.catch_warnings(), silent(OUT, ERR):
        warnings.simplefilter("ignore")
        exir = importlib.import_module("executorch.exir")
        partitioning = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        try:
            edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioning.XnnpackPartitioner()])
            calls = list(_calls(edge.exported_program().graph_module))
            content = bytes(edge.to_executorch().buffer)
        except Exception as error:  # of many kinds: passes of theirs meet whatever graph there is
            raise GraphoptError(
                f"ExecuTorch cannot compile this: {type(error).__name__}: {first_line(error)}"
            ) from error
    return content, calls


def _calls(module: Any) -> Iterator[Call]:
    for node in module.graph.nodes:
        if node.op == "get_attr" and hasattr(getattr(module, node.target), "original_module"):
            inside = getattr(module, node.target).original_module.graph_module.graph
            yield from (_delegated(call) for call in inside.nodes if call.op == "call_function")
        elif node.op == "call_function" and "delegate" not in str(node.target) and "getitem" not in str(node.target):
            yield Call(_origin(node), _operator(node), PORTABLE)


def _delegated(node: Node) -> Call:
    """Of a call that was given to XNNPACK: in integer, if quantizers around it are part of its kernel."""
    quantizes = "quantize_per" in _operator(node)
    read = [source for source in node.all_input_nodes if source.meta.get(IMPLICIT)]
    integer = bool(read) and any(reader.meta.get(IMPLICIT) for reader in _readers(node))
    return Call(_origin(node), _operator(node), INTEGER if integer or quantizes else FLOAT)


def _readers(node: Node) -> list[Node]:
    """What reads a call, past the activation that is fused into it."""
    readers = list(node.users)
    if len(readers) == 1 and any(name in _operator(readers[0]) for name in ("relu", "hardtanh")):
        readers = list(readers[0].users)
    return readers


def _operator(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _origin(node: Node) -> str:
    """The name that the call had which a call was made from, before the steps of export renamed it."""
    name, sources = "", node.meta.get("from_node") or []
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return name
