"""From a deployed graph to a Relax module: recognise integer kernels, keep codes as codes, emit node by node.

deployed graph -> kernels on codes (graphopt.lowering.integers) -> no float between codes (codes.py) -> operators that have a rule
(decompose.py) -> constants folded -> Relax
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.artifacts.audit import Audit
from graphopt.backends.tvm import chains, codes, integer, operators
from graphopt.backends.tvm.decompose import decompose
from graphopt.backends.tvm.float16 import deploy, keep_float16
from graphopt.backends.tvm.fused import fused
from graphopt.backends.tvm.layouts import Value, plain
from graphopt.backends.tvm.machine import Processor
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Conv, Variant
from graphopt.formats.blocks import DEQUANTIZE_BLOCKS
from graphopt.ir.calls import shape
from graphopt.ir.float16 import half_of
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family, is_random
from graphopt.lowering.integers.arithmetic import dequantize, quantize
from graphopt.lowering.integers.fusion import Kernel, fuse
from graphopt.lowering.integers.legalize import CLIP_CODES, gate_codes, is_dequantized, slice_parts
from graphopt.utils.errors import GraphoptError, InputError
from graphopt.utils.printing import dtype_name

ARITHMETIC = (
    "x86_64"  # float32 multipliers with fused multiply-add, on every CPU: see graphopt.lowering.integers.machines
)


@dataclass(frozen=True)
class Emitted:
    """A module with one function `main`, and what it computes in integer.

    Attributes:
        names: of the watched codes, which `main` returns behind the graph's own outputs.
        layers: every kind of layer that it calls.
        sites: the kernels that it calls, in order, each with the layer that it computes.
        makers: variable of `main` -> of which operator of the model it is the result: the beginning of a refusal.
    """

    module: Any
    audit: Audit
    names: tuple[str, ...] = ()
    layers: tuple[Conv, ...] = ()
    sites: tuple[tuple[str, str], ...] = ()
    makers: dict[str, str] = field(default_factory=dict)


def legalize(graph: Graph) -> None:
    """Rewrite a deployed graph in place so that kernels are found in it."""
    slice_parts(graph)
    for node in graph.calls():
        if family(node) == "hard_sigmoid" and is_dequantized(node.args[0]):
            gate_codes(graph, node)
    graph.refresh()


def emit(
    graph: Graph,
    machine: Processor,
    watch: Sequence[str] = (),
    samples: int = 1,
    variants: Mapping[Conv, Variant] | None = None,
) -> Emitted:
    """Emit a graph with a fixed batch. Simulated graphs are deployed first; the graph is not changed.

    Args:
        machine: whose kernels are chosen.
        watch: names of codes to return as well, as `Simulation.codes` has them.
        samples: in the batch, if the audit is to count one of them.
        variants: of the layers that were tuned.

    Raises:
        GraphoptError: an operator cannot be emitted; names it.
    """
    prepared = deploy(graph)
    _require_static(prepared)
    legalize(prepared)
    names = fuse(prepared, ARITHMETIC, mixes_signs=True)
    watched = {name: node for node, name in names.items() if name in watch}
    if not watched:
        codes.keep_codes(prepared)
    decompose(prepared, operators.RULES, operators.has_rule)
    folded = _fold_constants(prepared)
    watched = {name: folded.get(node, node) for name, node in watched.items()}
    keep_float16(prepared)
    program = Program(prepared, machine, samples, variants)
    inputs = [relax.Var(name, _type(node)) for name, node in zip(prepared.input_names, prepared.inputs, strict=True)]
    with program.builder.function("main", inputs):
        with program.builder.dataflow():
            for node, variable in zip(prepared.inputs, inputs, strict=True):
                program.values[node] = Value(variable, shape(node), plain(len(shape(node))))
            _emit_calls(program, set(watched.values()))
            results = [program.plain(program.value(n)).expr for n in [*prepared.outputs, *watched.values()]]
            output = program.builder.emit_output(relax.Tuple(results))
        program.builder.emit_func_output(output)
    module, makers = program.builder.get(), _makers(program)
    return Emitted(module, program.audit, tuple(watched), program.layers, tuple(program.sites), makers)


def _makers(program: Program) -> dict[str, str]:
    """Variable -> site and operator of the call whose result it holds."""
    made = [(node, [value]) for node, value in program.values.items()]
    made += [(node, list(values)) for node, values in program.results.items()]
    return {
        str(value.expr.name): f"{program.graph.site(node)}: TVM cannot compile {operators.described(node)}"
        for node, values in made
        for value in values
        if node.op == "call_function" and isinstance(value.expr, relax.Var)
    }


def _type(node: Node) -> Any:
    return relax.TensorType(list(shape(node)), dtype_name(node.meta["val"].dtype))


def _require_static(graph: Graph) -> None:
    for name, node in zip(graph.input_names, graph.inputs, strict=True):
        if not all(isinstance(size, int) for size in shape(node)):
            raise InputError(
                f"input {name!r} has a free batch size, and TVM kernels are made for one; use graphopt.backends.tvm.lower, "
                "which fixes it, or capture with dynamic_batch=False"
            )
    if graph.calls(DEQUANTIZE_BLOCKS):
        raise InputError(
            "weights in blocks have no TVM kernel; quantize values too (leave out weight_only), "
            "or use an ONNX Runtime target (arm, x86)"
        )


def _fold_constants(graph: Graph) -> dict[Node, Node]:
    """Calls that read only constants, or nothing, are computed now: call -> the constant in its place."""
    folded = {}
    for node in graph.calls():
        if is_random(node):
            continue
        if all(map(graph.is_constant, node.all_input_nodes)):
            target: Any = node.target
            arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), graph.tensor)
            with torch.no_grad():
                value = target(*arguments, **options)
            if isinstance(value, torch.Tensor):
                folded[node] = graph.add_constant(f"{node.name}_value", value, before=node)
                graph.replace(node, folded[node])
    graph.module.graph.eliminate_dead_code()
    return folded


def _emit_calls(program: Program, watched: set[Node]) -> None:
    graph = program.graph
    chained = chains.chains(graph)
    kernels = fused(graph, watched, looked_up=program.machine.looks_up)
    later = {n for chain in chained.values() for n in chain.members}
    later |= {n for kernel in kernels.values() for n in kernel.members[:-1]}
    for node in graph.calls():
        if node in later or half_of(node) is not None:  # widened where it is read
            continue
        program.at = node
        if node in chained:
            value = chains.emit_chain(program, chained[node], node)
        elif node in kernels:
            value = kernels[node].emit(program)
        elif isinstance(node.target, Kernel):
            value = integer.emit_kernel(program, node)
        elif node.target is quantize:
            value = integer.emit_quantize(program, node)
        elif node.target is dequantize:
            value = integer.emit_dequantize(program, node)
        elif node.target is CLIP_CODES:
            value = integer.emit_lookup(program, node)
        else:
            emitted = operators.emit(program, node)
            program.floating(node)
            if isinstance(emitted, tuple):
                program.results[node] = emitted
                continue
            value = emitted
        if value.shape != shape(node):
            raise GraphoptError(f"{graph.site(node)}: emitted {value.shape} for {node.target}, which has {shape(node)}")
        program.values[node] = value
