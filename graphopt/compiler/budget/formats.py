"""Choices of number formats: a layer in the target's integers, in fewer bits where size is limited, in float where time is.

An option's value are the bits of the weights; None: the layer is in float. Damages are measured at the output with all else in
float, on a copy that is quantized as the result will be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from glob import escape

from torch import Tensor
from torch.fx.node import Node

from graphopt.compiler.budget.amounts import ENERGY, SIZED, TIMED
from graphopt.compiler.recipes import integer, prepare
from graphopt.evaluation.sensitivity import analyze
from graphopt.formats import Format, with_bits
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import LayerFormat
from graphopt.passmanager.runner import run
from graphopt.searching import Assignment, Choice, Option
from graphopt.targets import Target

FEWER = (6, 4, 3)  # bits of weights, where the target has them
HURTS = 1e-3  # damage in integer, from which a layer may be in float: 30 dB at the output
FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerFormats:
    """The layers whose format is chosen: a choice for each.

    Attributes:
        own: the format of the target's weights; None: where nothing can be chosen.
    """

    choices: list[Choice]
    own: Format | None

    @classmethod
    def of(
        cls, graph: Graph, target: Target, data: Iterable[list[Tensor]] | None, amounts: Collection[str], estimator: str
    ) -> LayerFormats:
        """None without data; else those that some amount has a price for: fewer bits save bytes, float costs time."""
        own = target.formats.weights
        if data is None or not isinstance(own, Format) or not isinstance(target.formats.activations, Format):
            return cls([], None)
        fewer = {*SIZED, ENERGY} & {*amounts}
        floats = {*TIMED, ENERGY} & {*amounts} and target.kernels.float_layers
        bits = [b for b in FEWER if fewer and b in target.formats.weight_bits and b < own.bits]
        if not bits and not floats:
            return cls([], own)
        damages = {b: _damages(graph, target, data, with_bits(own, b), estimator) for b in (own.bits, *bits)}
        choices = []
        for site, damage in damages[own.bits].items():
            options = [Option(f"{own.bits} bits", damage, own.bits)]
            if floats and damage > HURTS:
                options.append(Option("float", 0.0, None))
            for b in bits:  # fewer bits that happen to damage less are no better on other data
                damage = max(damage, damages[b].get(site, 1.0))
                options.append(Option(f"{b} bits", damage, b))
            if len(options) > 1:
                choices.append(Choice(site, "format", tuple(options)))
        return cls(choices, own)

    def numbers(self, graph: Graph) -> dict[Node, int]:
        """The choice of each call of a layer, by number."""
        by_site = {choice.name: number for number, choice in enumerate(self.choices)}
        return {node: by_site[graph.site(node)] for node in graph.calls() if graph.site(node) in by_site}

    def bits(self, number: int, option: int) -> float:
        """Of the weights."""
        found: int | None = self.choices[number].options[option].value
        return FLOAT_BITS if found is None else found

    def is_float(self, number: int, option: int) -> bool:
        return self.choices[number].options[option].value is None

    def chosen(self, assignment: Assignment, there: Collection[str]) -> dict[str, LayerFormat | None]:
        """What `Quantize(formats=)` takes, of the layers that are `there`."""
        found: dict[str, LayerFormat | None] = {}
        for choice, option in zip(self.choices, assignment, strict=True):
            if option and choice.name in there and self.own is not None:
                bits = choice.options[option].value
                weights = None if bits is None else LayerFormat(weights=with_bits(self.own, bits))
                found[escape(choice.name)] = weights
        return found


def _damages(
    graph: Graph, target: Target, data: Iterable[list[Tensor]], weights: Format, estimator: str
) -> Mapping[str, float]:
    """By layer: what it does to the output alone, with weights in some format."""
    copy = graph.clone()
    formats = {} if weights == target.formats.weights else {"*": LayerFormat(weights=weights)}
    run([*prepare(target), *integer(target, data, formats=formats, estimator=estimator)], copy, verify=False)
    layers = [layer for layer in analyze(copy, data).layers if layer.weight_bits is not None]
    return {layer.name: 10 ** (-layer.alone.output.sqnr_db / 10) for layer in layers}
