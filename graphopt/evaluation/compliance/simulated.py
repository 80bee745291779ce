"""Rules for simulated graphs, whatever their number formats: the quantizers say what is rounded, and to what."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from graphopt.evaluation.compliance.violation import Violation
from graphopt.formats import in_blocks
from graphopt.ir.calls import operand
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family
from graphopt.ir.quantizers import is_quantizer, is_uniform, quantizer_of, quantizers
from graphopt.targets import Target

Rule = Callable[[Graph, Target], Iterator[Violation]]


def layers(graph: Graph, target: Target) -> Iterator[Violation]:
    """Weights and inputs of layers are codes."""
    for node in graph.calls():
        if (layer := Layer.of(node)) is None:
            continue
        for what, value in (("weight", layer.weight), ("input", layer.input)):
            if not is_quantizer(value):
                why = graph.fact(node, LEFT) or f"its {what} is not rounded"
                yield Violation(
                    "float-layer", graph.site(node), f"computes in float: {why}", f"quantize it for {target.name!r}"
                )
                break


def formats(graph: Graph, target: Target) -> Iterator[Violation]:
    """Weights and values are in formats of the hardware."""
    weights = {layer.weight for node in graph.calls() if (layer := Layer.of(node))}
    for node in quantizers(graph):
        source = operand(node)
        if node not in weights and graph.is_constant(source):
            continue  # a bias, in the width of the sums
        kind = "weight" if node in weights else "value"
        known = target.formats.accepted("weights" if kind == "weight" else "activations")
        if is_uniform(node) and in_blocks(node):
            found = "a scale per block"
        elif (format := quantizer_of(graph, node).format) in known:
            continue
        else:
            found = str(format)
        site = str(source.target) if kind == "weight" else graph.site(source)
        yield Violation(f"{kind}-format", site, f"is in {found}", f"quantize to {' or '.join(map(str, known))}")


def norms(graph: Graph, target: Target) -> Iterator[Violation]:
    """No batch norm is left."""
    for node in graph.calls():
        if family(node) == "batch_norm":
            yield Violation("batch-norm", graph.site(node), "a batch norm is left", "fold it: run FoldBatchNorm")


SIMULATED_RULES: tuple[Rule, ...] = (layers, formats, norms)
