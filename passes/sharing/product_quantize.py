"""Product quantization of layers: weights made of few vectors, a byte for each (iPQ).

    W[o, j d : (j + 1) d] = C[k_oj]            C: [256, d] of each layer    k: uint8 [out, in / d]

    [ProductQuantize(8, data=images)]                                a byte for 8 weights, of convolutions one for a kernel

1. Each layer gets a codebook of its weight by k-means.
2. With data, the layers are taken in order: codes and codebook are found anew for what is wanted of the layer, under the moments
   of what it reads in the changed network (`vectors.py`), and the bias follows. A layer that gains nothing on samples held out
   keeps what it had.
3. Codebooks are parameters: `graphopt.train(graph, data, compress=[Response(model)])` trains the vectors, codes stay. Training
   with `graphopt.training.QuantNoise` before makes a network that loses less.

ONNX files hold codes and codebooks; ONNX Runtime makes the weights of them when a session begins. To passes that work on weights,
these layers are such whose weight is computed.

Needs:  a float graph. Masks are baked in. Transposed convolutions are left alone.
Papers: Stock et al. 2020, "And the Bit Goes Down: Revisiting the Quantization of Neural Networks"; Fan et al. 2021, "Training
        with Quantization Noise for Extreme Model Compression", section 4 (iPQ).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import from_matrix, weight_matrix
from graphopt.analysis.moments import Moments
from graphopt.fitting.fit import Fit, Found, Parametrization, fit
from graphopt.fitting.least_squares import gather, least_squares, shift_output
from graphopt.fitting.samples import Samples
from graphopt.ir.build import Build
from graphopt.ir.calls import shape, value
from graphopt.ir.constants import constant_weights
from graphopt.ir.facts import STORED_AS
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.sharing.sites import Site, sites
from graphopt.passes.sharing.vectors import fitted, made
from graphopt.utils.checks import check_count, check_repeatable, names_weight
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

ENTRIES = 256
RIDGES = (1e-2, 1.0)


@dataclass(frozen=True)
class ProductQuantize:
    """Quantize weights by products.

    Attributes:
        width: d, at most; weights to a byte. It is the largest that divides the inputs of a linear layer or of a 1x1 convolution;
            of other convolutions it is the size of a kernel.
        layers: name pattern of a weight -> its width, or None to leave it alone; the first match counts.
        data: batches of inputs; None: the weights alone decide.
        seed: of random starts.

    Raises:
        InputError: an option does not fit, or a pattern matches no weight.
    """

    exact: ClassVar[bool] = False

    width: int = 8
    layers: Mapping[str, int | None] = field(default_factory=dict)
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        for width in [self.width, *(w for w in self.layers.values() if w is not None)]:
            check_count("width", width, least=2)
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        baked = constant_weights(graph)
        found = self._sites(graph)
        original = graph.clone(share_weights=True)
        placed = [self._place(graph, site, width) for site, width in track(found, "product quantization")]
        graph.refresh()
        fits = self._fit(original, graph, placed) if self.data is not None and placed else {}
        return baked + [each.change(fits.get(each.layer.node.name)) for each in placed]

    def _sites(self, graph: Graph) -> list[tuple[Site, int]]:
        """Those to be changed, each with the width of its vectors."""
        every = [site for site in sites(graph) if site.layer is not None and site.layer.kind != "conv_transpose"]
        for pattern in self.layers:
            if every and not any(names_weight(pattern, site.name) for site in every):
                raise InputError(f"layers: no weight matches {pattern!r}; weights are named like {every[0].name}")
        widths = [(site, self._width(site)) for site in every]
        return [(site, width) for site, width in widths if width > 1 and _saves(site, width)]

    def _width(self, site: Site) -> int:
        most = next((w for p, w in self.layers.items() if names_weight(p, site.name)), self.width)
        if most is None or site.layer is None:
            return 0
        _, inside, *kernel = shape(site.weight)
        size = int(torch.Size(kernel).numel())
        return size if size > 1 else max(d for d in range(1, most + 1) if inside % d == 0)

    def _place(self, graph: Graph, site: Site, width: int) -> _Placed:
        layer, weight = site.layer, graph.tensor(site.weight)
        assert layer is not None
        matrix = weight_matrix(layer, weight).double()
        table, codes = fitted(
            matrix,
            torch.eye(matrix.shape[1], dtype=matrix.dtype),
            _entries(matrix.numel() // width),
            width,
            self._generator,
        )
        parts = {"codes": codes.to(torch.uint8), "codebook": table.to(weight.dtype)}
        constants = {
            name: graph.add_constant(f"{site.name}_{name}", tensor, before=layer.node, like=[site.weight])
            for name, tensor in parts.items()
        }
        build = Build(graph, layer.node, constants)
        flat = build.call(aten.flatten.using_ints, build.call(aten.to.dtype, "codes", torch.int64))
        rows = build.call(aten.index_select.default, "codebook", 0, flat)
        found = build.call(aten.view.default, rows, list(weight.shape))
        for call in build.calls:
            graph.set_fact(call, STORED_AS, True)
        found.meta["val"] = value(site.weight)
        layer.node.replace_input_with(site.weight, found)
        changed = Layer.of(layer.node)
        assert changed is not None
        return _Placed(site.name, changed, constants["codebook"], constants["codes"], weight, width)

    @property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _fit(self, original: Graph, graph: Graph, placed: list[_Placed]) -> dict[str, Fit]:
        assert self.data is not None
        sources = {node.name: node for node in original.nodes}
        tasks = []
        for each in placed:
            source = Layer.of(sources[each.layer.node.name])
            assert source is not None
            if each.layer.bias is None or graph.is_constant(each.layer.bias):
                tasks.append(Vectors.of_layer(each.layer, source, layer=each.layer, placed=each, seed=self.seed))
        found = fit(original, graph, self.data, tasks, "product quantization")
        return {task.layer.node.name: each for task, each in zip(tasks, found, strict=True)}


@dataclass(frozen=True)
class _Placed:
    """A layer whose weight is made of vectors. `before`: its weight in float."""

    name: str
    layer: Layer
    table: Node
    codes: Node
    before: Tensor
    width: int

    def change(self, found: Fit | None) -> Change:
        entries, size = (
            int(shape(self.table)[0]),
            self.before.numel() // self.width + 4 * shape(self.table)[0] * self.width,
        )
        fits = "" if found is None else f", error {found.before:.3g} -> {found.error:.3g}"
        what = f"{entries} vectors of {self.width}, {8 * size / self.before.numel():.2f} bits per weight{fits}"
        return Change(self.name, what)


@dataclass(eq=False, kw_only=True)
class Vectors(Parametrization):
    """Codes and codebook of a layer, and its bias. `layer`: of the changed graph."""

    makes_up: ClassVar[bool] = True

    layer: Layer
    placed: _Placed
    seed: int

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        layer, placed = self.layer, self.placed
        moments = Moments(layer, centred=layer.bias is not None)
        gather(layer, samples, moments.update)
        matrix = weight_matrix(layer, placed.before)
        grouped = matrix.reshape(layer.groups, -1, matrix.shape[1]).double()
        entries = int(shape(placed.table)[0])
        for ridge in RIDGES:
            aim, metric = least_squares(grouped, moments, ridge)
            generator = torch.Generator().manual_seed(self.seed)
            table, codes = fitted(aim.flatten(0, 1), metric.mean(0), entries, placed.width, generator)
            table = table.to(placed.before.dtype)
            weight = made(table.double(), codes).reshape(aim.shape)
            lost = moments.mean_t - (weight @ moments.mean_x[..., None])[..., 0]
            yield {"table": table, "codes": codes.to(torch.uint8), "bias": lost.flatten()}

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        matrix = made(found["table"], found["codes"].long())
        return {self.layer.weight: from_matrix(self.layer, matrix, self.placed.before)}

    def shift(self, graph: Graph, found: Found) -> Tensor | None:
        bias: Tensor = found["bias"]
        return None if self.layer.bias is None else bias - graph.tensor(self.layer.bias).double()

    def store(self, graph: Graph, found: Found) -> None:
        if (shift := self.shift(graph, found)) is not None:
            shift_output(graph, self.layer, shift)
        graph.put_constant(self.placed.table, found["table"].contiguous())
        graph.put_constant(self.placed.codes, found["codes"].contiguous())


def _entries(vectors: int) -> int:
    return min(ENTRIES, max(2, vectors // 4))


def _saves(site: Site, width: int) -> bool:
    """Whether codes and codebook take less than half of the weight."""
    count = value(site.weight).numel()
    vectors = count // width
    return bool(vectors >= 8 and vectors + 4 * _entries(vectors) * width < 2 * count)
