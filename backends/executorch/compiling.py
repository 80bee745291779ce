"""From a program of `torch.export` to a `.pte`: what XNNPACK takes goes to it, the rest to ExecuTorch's own kernels.

delegated = Delegated(program)
delegated.calls                  what is computed where, read back call by call
delegated.content()              of the file
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.fx.node import Node

from graphopt.backends.executorch.runtime import REMEDY, modules, quiet
from graphopt.utils.alone import ALONE
from graphopt.utils.errors import GraphoptError, first_line

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

    @property
    def kind(self) -> str:
        """The operator without its library and its variant: `convolution`."""
        return self.operator.split(".")[-2] if "." in self.operator else self.operator


class Delegated:
    """A program whose calls were given to XNNPACK where it takes them.

    Attributes:
        calls: in order; quantizers that stand alone are among those of `xnnpack integer`.

    Raises:
        GraphoptError: ExecuTorch refuses the program.
    """

    def __init__(self, program: ExportedProgram) -> None:
        modules()
        with _theirs():
            exir = importlib.import_module("executorch.exir")
            partitioning = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
            self._edge = exir.to_edge_transform_and_lower(
                program,
                partitioner=[partitioning.XnnpackPartitioner()],
                compile_config=exir.EdgeCompileConfig(
                    _check_ir_validity=False
                ),  # what has no kernel is refused by name
            )
        self.calls = list(_calls(self._edge.exported_program().graph_module))

    def content(self) -> bytes:
        """Of the file.

        Raises:
            GraphoptError: ExecuTorch refuses the program.
        """
        with _theirs():
            return bytes(self._edge.to_executorch().buffer)


@contextmanager
def _theirs() -> Iterator[None]:
    """Around their code: quiet, and what it raises as an error of ours."""
    with ALONE, quiet():
        try:
            yield
        except Exception as error:  # of many kinds: their passes meet whatever graph there is
            why = first_line(error.__cause__ or error)
            raise GraphoptError(f"ExecuTorch cannot compile this: {why}; {REMEDY}") from error


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
    sources = node.all_input_nodes
    if _clips(node) and not sources[0].meta.get(IMPLICIT):  # fused into what it reads
        sources = sources[0].all_input_nodes
    integer = any(s.meta.get(IMPLICIT) for s in sources) and any(r.meta.get(IMPLICIT) for r in _readers(node))
    return Call(_origin(node), _operator(node), INTEGER if integer or quantizes else FLOAT)


def _readers(node: Node) -> list[Node]:
    """What reads a call, past the activation that is fused into it."""
    readers = list(node.users)
    return list(readers[0].users) if len(readers) == 1 and _clips(readers[0]) else readers


def _clips(node: Node) -> bool:
    return any(name in _operator(node) for name in (".relu.", ".hardtanh."))


def _operator(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _origin(node: Node) -> str:
    """The name that the call had which a call was made from, before the steps of export renamed it."""
    name, sources = "", node.meta.get("from_node") or []
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return name
