"""Let the weights of each layer share a few values: the second step of Deep Compression.

    W^_i = table[code_i]            codes of a few bits, which an entropy coder makes smaller still (`storage="entropy"`)

    [Sparsify(0.9), ShareWeights(bits=5)]                        pruned, then 31 values and zero for each layer, by k-means
    [ShareWeights(values="uniform", data=images, size=100_000)]  multiples of a step, chosen for a size in bytes, on data

1. Each layer gets a table: by k-means over its weights from a linear, density-based or random start (Han et al. found linear
   best), or the multiples of a step, which an entropy coder makes the most of (Choi et al.).
2. With `size`, how many values each layer has is chosen: those that keep the size and change the output least (`budget.py`).
3. With `data`, each weight's value is chosen so that the layer gives what it gave, not the nearest, and the bias follows; what
   costs many bits has a price (`indices.py`). A layer that gains nothing on samples held out keeps its nearest values.

Zeros stay zeros. Train the shared values with `graphopt.training.SharedValues`. At lowering the weights are floats with few
different values, whose codes and table `graphopt.coding` finds again; biases and norms stay as they are.

Needs:  a float graph. Masks are baked in. Layers that are quantized already are left alone.
Papers: Han et al. 2016, "Deep Compression", section 3; Choi et al. 2017, "Towards the Limit of Network Quantization".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, get_args

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.reference import float_reference
from graphopt.fitting.fit import Fit, fit
from graphopt.fitting.priced import entropy
from graphopt.formats.codebook import Start
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizer_of
from graphopt.passes.sharing.budget import quantizer_of_table, spend
from graphopt.passes.sharing.indices import Indices
from graphopt.passes.sharing.sites import Site, sites
from graphopt.passes.sharing.tables import Values, multiples, shared, step_of
from graphopt.utils.checks import check_repeatable, names_weight
from graphopt.utils.errors import InputError

BITS = (8, 7, 6, 5, 4, 3, 2)  # of k-means
RATES = (6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0)  # of uniform values, see `tables.step_of`


@dataclass(frozen=True)
class ShareWeights:
    """Share values.

    Attributes:
        bits: of a code, 2 to 8, where no size is given: 2^bits values with k-means; with uniform ones about so many bits of an
            entropy coder.
        values: `k-means` or `uniform`.
        start: of k-means: `linear`, `density`, `random`, or `cube root`.
        layers: name pattern of a weight -> its bits, or None to leave it alone; the first match counts.
        data: batches of inputs; needed with `size`.
        size: bytes of all shared weights and their tables once they are entropy-coded.
        seed: of a random start.

    Raises:
        InputError: an option does not fit, a pattern matches no weight, no weight can share values, or `size` is out of reach.
    """

    exact: ClassVar[bool] = False

    bits: int = 5
    values: Values = "k-means"
    start: Start = "linear"
    layers: Mapping[str, int | None] = field(default_factory=dict)
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    size: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for bits in [self.bits, *(b for b in self.layers.values() if b is not None)]:
            if not 2 <= bits <= 8:
                raise InputError(f"bits must be from 2 to 8, got {bits}")
        for name, given, known in (("values", self.values, Values), ("start", self.start, Start)):
            if given not in get_args(known):
                raise InputError(f"{name} must be one of {', '.join(get_args(known))}, got {given!r}")
        if self.size is not None and self.data is None:
            raise InputError("a size is kept at the least damage, which takes data=Calibration(images, graph)")
        if self.size is not None and self.size <= 0:
            raise InputError(f"size is a number of bytes over 0, got {self.size}")
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        baked = constant_weights(graph)
        found = self._sites(graph)
        if not found:
            return baked
        amounts = self._amounts(graph, found)
        placed = {
            site: site.place(graph, quantizer_of_table(self._table(graph, site, amount)))
            for site, amount in zip(found, amounts, strict=True)
        }
        graph.refresh()
        fits = {} if self.data is None else self._choose(graph, placed)
        return baked + [self._change(graph, site, node, fits.get(site)) for site, node in placed.items()]

    def _sites(self, graph: Graph) -> list[Site]:
        """Those to be changed; none where all are shared already."""
        found = sites(graph)
        for pattern in self.layers:
            if found and not any(names_weight(pattern, site.name) for site in found):
                raise InputError(f"layers: no weight matches {pattern!r}; weights are named like {found[0].name}")
        return [site for site in found if self._bits(site) is not None]

    def _bits(self, site: Site) -> int | None:
        return next((b for p, b in self.layers.items() if names_weight(p, site.name)), self.bits)

    def _table(self, graph: Graph, site: Site, amount: float) -> Tensor:
        weight = graph.tensor(site.weight)
        if self.values == "uniform":
            return multiples(weight, step_of(weight, amount))
        return shared(weight, int(amount), self.start, self.seed)

    def _amounts(self, graph: Graph, found: Sequence[Site]) -> Sequence[float]:
        if self.size is None or self.data is None:
            return [self._bits(site) or self.bits for site in found]
        sizes = RATES if self.values == "uniform" else BITS
        return spend(graph, self.data, found, sizes, lambda site, amount: self._table(graph, site, amount), self.size)

    def _choose(self, graph: Graph, placed: Mapping[Site, Node]) -> dict[Site, Fit]:
        """Let each weight have the value that suits the data."""
        assert self.data is not None
        reference, tasks = float_reference(graph), {}
        sources = {node.name: node for node in reference.nodes}
        for site in placed:
            layer = None if site.layer is None else Layer.of(site.layer.node)
            if layer is not None and (layer.bias is None or graph.is_constant(layer.bias)):
                source = Layer.of(sources[layer.node.name])
                assert source is not None
                step = self._step(graph, placed[site])
                tasks[site] = Indices.of_layer(layer, source, layer=layer, step=step)
        found = fit(reference, graph, self.data, list(tasks.values()), "shared values")
        return dict(zip(tasks, found, strict=True))

    def _step(self, graph: Graph, rounded: Node) -> float:
        table = quantizer_of(graph, rounded).parameters[0]
        return float(table[1] - table[0]) if self.values == "uniform" else 0.0

    def _change(self, graph: Graph, site: Site, rounded: Node, found: Fit | None) -> Change:
        quantizer = quantizer_of(graph, rounded)
        codes = quantizer.quantize(graph.tensor(rounded.args[0]))  # type: ignore[arg-type]
        text = f"{len(torch.unique(codes))} values, {entropy(codes) / codes.numel():.2f} bits per weight"
        note = "" if found is None else f", error {found.before:.2g} -> {found.error:.2g}"
        return Change(graph.site(site.readers[0]), text + note)
