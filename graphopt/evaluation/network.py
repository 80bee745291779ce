"""A graph call by call, for tables and drawings: what each computes, in which arithmetic, and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx.node import Node

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.network import Arithmetic, Call
from graphopt.ir import cost
from graphopt.ir.calls import value as result_of
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.ops import clip_of, family, info
from graphopt.ir.quantized_units import Unit, units
from graphopt.ir.quantizers import is_quantizer, is_uniform, quantizer_of
from graphopt.lowering.names import value_names

HIDDEN = frozenset({"identity", "getitem"})  # families that a reader of the drawing learns nothing from


def network(graph: Graph, audit: Audit | None = None) -> list[Call]:
    """The calls of a graph that depend on its inputs, and the inputs, in execution order.

    Quantizers are no calls of their own: the bits of what they round are said of the call in front of them. Clips are fused into
    a call that nothing else reads.

    Args:
        graph: float or simulated; it is not changed.
        audit: what is known of the graph as it is deployed; without it, a call counts as integer where its result or its weight
            is rounded to whole numbers.
    """
    return _Walk(graph, audit).calls()


@dataclass
class _Walk:
    graph: Graph
    audit: Audit | None
    found: list[Call] = field(default_factory=list)
    number: dict[Node, int] = field(default_factory=dict)  # of the call that a node belongs to

    def calls(self) -> list[Call]:
        graph = self.graph
        owners: dict[Node, list[Unit]] = {}
        for unit in units(graph):
            owners.setdefault(unit.node, []).append(unit)
        work = cost.layer_macs(graph)
        names, values = dict(zip(graph.inputs, graph.input_names, strict=True)), value_names(graph)
        for node in graph.nodes:
            if node in names:
                self.add(node, Call(names[node], "input", names[node]))
            elif node.op == "call_function":
                self.call(node, owners.get(node, []), work.get(node, 0), values[node])
            for unit in owners.get(node, []) if node in self.number else []:
                self.bits(self.number[node], unit)
        return self.found

    def call(self, node: Node, own: list[Unit], macs: int, value: str) -> None:
        reads = list(dict.fromkeys(self.number[source] for source in node.all_input_nodes if source in self.number))
        if not reads:  # of constants alone
            return
        kind = family(node) or str(getattr(node.target, "__name__", node.target)).split(".")[0]
        alone = len(reads) == 1 and len(node.all_input_nodes[0].users) == 1
        if is_quantizer(node) or kind in HIDDEN:
            self.number[node] = reads[0]
        elif alone and clip_of(node) is not None and self.found[reads[0]].operator != "input":
            self.number[node] = reads[0]
            before = self.found[reads[0]]
            self.found[reads[0]] = replace(before, operator=f"{before.operator} + {kind}")
        else:
            name = min((unit.name for unit in own), key=len, default=self.graph.site(node))
            arithmetic, reason = self.arithmetic(node, own)
            self.add(node, Call(name, kind, value, reads, macs=macs, arithmetic=arithmetic, reason=reason))

    def add(self, node: Node, call: Call) -> None:
        self.number[node] = len(self.found)
        self.found.append(replace(call, shape=_shape(node)))

    def arithmetic(self, node: Node, own: list[Unit]) -> tuple[Arithmetic, str]:
        site, reason = self.graph.site(node), self.graph.fact(node, LEFT) or ""
        if self.audit is not None:
            if site in self.audit.integer:
                return "integer", ""
            if site in self.audit.weight_only:
                return "weights", ""
            for operator in self.audit.floating:
                if operator.site == site:
                    return "float", operator.reason
        if reason:
            return "float", reason
        if info(node).selects:
            return "", ""
        return ("integer" if any(not unit.is_float for unit in own) else "float"), ""

    def bits(self, number: int, unit: Unit) -> None:
        before = self.found[number]
        weight, result = (None if q is None else _bits(self.graph, q) for q in (unit.weight, unit.value))
        self.found[number] = replace(
            before,
            weight_bits=before.weight_bits if weight is None else weight,
            activation_bits=before.activation_bits if result is None else result,
        )


def _bits(graph: Graph, quantizer: Node) -> int:
    if is_uniform(quantizer):  # with a scale for each block, too
        first, last = quantizer.args[3:5]
        return (int(last) - int(first)).bit_length()  # type: ignore[arg-type]
    return quantizer_of(graph, quantizer).format.bits


def _shape(node: Node) -> tuple[int | None, ...]:
    """Of the first tensor of a result; sizes that are free are None."""
    found = result_of(node)
    first = next((v for v in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(v, Tensor)), None)
    return () if first is None else tuple(size if type(size) is int else None for size in first.shape)
