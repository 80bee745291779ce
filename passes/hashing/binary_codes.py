"""Binary codes in place of features: what a search by Hamming distance reads.

    features [N, width]  ->  bytes, uint8 [N, bits / 8]        packed as `numpy.packbits` packs them

    [BinaryCodes(64, images)]                    ITQ: principal directions, rotated towards their signs
    [BinaryCodes(64, images, method="median")]   the 64 features that vary most, each above its median or not

Which bits, is found on data; `projections.py` has the methods. `graphopt.training.LearnCodes` trains them further, with the
network; `graphopt.retrieval` searches. Quantize afterwards, so that the projection is computed in integer like any layer.

Needs:  an output of features, [N, width] of floats; typical inputs, for PCA and ITQ more of them than bits.
Papers: Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import Range, observe
from graphopt.ir.calls import is_float, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.packed_bits import append, packed_outputs
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.hashing.projections import METHODS, Method, Projection, Signs, Thresholds
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError, alternatives

FEWEST = 2  # samples, for any statistic


@dataclass(frozen=True)
class BinaryCodes:
    """Append codes to a graph that gives features.

    Attributes:
        bits: of a code, a multiple of 8.
        data: batches of typical inputs.
        method: `mean` or `median` (thresholds of single features), `pca`, `itq`, or `random` (projections, as many as wanted).
        whitening: of ITQ, 0 to 1: 0 is the paper's, best where classes are looked for; 0.5 where neighbours inside tight classes
            are.
        output: the name of the features among several outputs; the others stay.
        seed: of ITQ's first rotation, and of random projections.

    Raises:
        InputError: an option does not fit, the output holds no features, or the data are too few or too alike for so many bits.
        NonFiniteError: NaN or infinity in features; names the first operator that produced it.
    """

    exact: ClassVar[bool] = False

    bits: int
    data: Iterable[list[Tensor]] = field(repr=False)
    method: Method = "itq"
    whitening: float = 0.0
    output: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("bits", self.bits, 8)
        if self.bits % 8:
            raise InputError(f"bits must be a multiple of 8, as bytes hold them, got {self.bits}")
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; {alternatives(self.method, METHODS, 'methods')}")

        if not 0 <= self.whitening <= 1 or (self.whitening and self.method != "itq"):
            raise InputError(
                f"whitening is from 0 to 1, and of method 'itq' alone, got {self.whitening} with {self.method!r}"
            )

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if packed_outputs(graph):
            return []
        source = self.features(graph)
        width = int(shape(source)[1])
        options = {"whitening": self.whitening} if self.method == "itq" else {}
        generator = torch.Generator().manual_seed(self.seed)
        signs = METHODS[self.method](self.observed(graph, source), self.bits, generator, **options)
        append(graph, self.scores(graph, source, signs), self.bits, source)
        what = f"{width} features became {self.bits} bits, {self.bits // 8} bytes ({self.method})"
        return [Change(graph.site(source), what)]

    def features(self, graph: Graph) -> Node:
        """The output that holds features."""
        named = dict(zip(graph.output_names, graph.outputs, strict=True))
        if self.output is None and len(named) != 1:
            raise InputError(
                f"the graph has several outputs; say which holds features: output={next(iter(named))!r}, ..."
            )
        if self.output is not None and self.output not in named:
            raise InputError(f"no output is called {self.output!r}; {alternatives(self.output, named, 'outputs')}")
        found = named[self.output] if self.output is not None else graph.outputs[0]
        sizes = shape(found)
        if len(sizes) != 2 or not is_float(found) or not isinstance(sizes[1], int):
            raise InputError(
                f"the output must hold features, floats [samples, width]; it has {len(sizes)} dimensions of "
                f"{value(found).dtype}: pool or flatten in the model, and leave out its classifier"
            )
        return found

    def observed(self, graph: Graph, source: Node) -> Tensor:
        """The features of the data, float64 [samples, width]."""
        seen = _Seen()
        observe(graph, {source: seen}, self.data)
        count = sum(map(len, seen.parts))
        if count < FEWEST:
            raise InputError(f"codes need at least {FEWEST} samples of typical inputs, the data have {count}")
        return torch.cat(seen.parts).double()

    def scores(self, graph: Graph, source: Node, signs: Signs) -> Node:
        """What bits are the signs of, [N, bits]."""
        end, dtype = graph.output, source.meta["val"].dtype
        like = [node for node in graph.nodes if graph.is_constant(node)]

        def constant(name: str, value: Tensor) -> Node:
            floating = value.to(dtype) if value.is_floating_point() else value
            return graph.add_constant(f"codes.{name}", floating.contiguous(), before=end, like=like)

        if isinstance(signs, Projection):
            weight, bias = constant("weight", signs.weight), constant("bias", signs.bias)
            return graph.call(aten.linear.default, source, weight, bias, before=end, like=source)
        assert isinstance(signs, Thresholds)
        columns, thresholds = constant("columns", signs.columns), constant("thresholds", signs.thresholds)
        chosen = graph.call(aten.index_select.default, source, 1, columns, before=end, like=source)
        return graph.call(aten.sub.Tensor, chosen, thresholds, before=end, like=source)


class _Seen(Range):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Tensor] = []

    def update(self, value: Tensor) -> None:
        super().update(value)
        self.parts.append(value.detach().cpu().clone())
