"""Quantization-aware training: the quantizers that `Quantize` placed, trained with the network.

    report = graphopt.train(graph, loader, compress=[QuantizationAware(), Response(model)], epochs=5)

It starts from what the graph answers and leaves a plain quantized graph, which lowers, simulates and is saved as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import quantizers
from graphopt.training.compression import Compression, Run
from graphopt.training.quantization import norms, signs, transforms
from graphopt.training.quantization.grids import Grid, grids
from graphopt.training.quantization.learned import LearnedGrid
from graphopt.training.quantization.methods import Method, method_of
from graphopt.training.quantization.observed import Observer, observers
from graphopt.training.quantization.signs import LearnedSigns, of_weights, sign_quantizers
from graphopt.utils.errors import InputError


class QuantizationAware(Compression):
    """Train a quantized graph together with its quantizers.

    Args:
        method: `lsq`, or another of `graphopt.training.quantization.methods`.
        weights, activations: of these alone, in place of `method`.
        batch_norms: whether layers that had a batch norm have one again while they train; else it stays folded.
        data: batches of input tensors that the first statistics of batch norms are taken from; None: the training data, which
            `graphopt.train` hands in.
        freeze_norms: the share of the training after which batch norms normalize by their running statistics.
        reestimate_norms: whether running statistics are taken anew before every evaluation, of the network as it answers then.
            None: where it rounds otherwise in training (`quantization_networks`, `stochastic`).
        observe: the share of the training in which scales of activations that no method learns (`ste`, `stochastic`) follow what
            batches hold; they are frozen behind it. 0: they stay as they were calibrated.
        accumulator_bits: what `a2q` promises that sums of products fit into.

    Raises:
        InputError: an unknown method, a share that is not between 0 and 1; with `attach`, a graph that is not quantized, or no
            data where they are needed.
    """

    def __init__(
        self,
        method: str = "lsq",
        *,
        weights: str | None = None,
        activations: str | None = None,
        batch_norms: bool = True,
        data: Iterable[list[Tensor]] | None = None,
        freeze_norms: float = 1.0,
        reestimate_norms: bool | None = None,
        observe: float = 0.0,
        accumulator_bits: int = 16,
    ) -> None:
        self.weights = method_of(weights or method, of_weights=True)
        self.activations = method_of(activations or method, of_weights=False)
        self.batch_norms, self.data = batch_norms, data
        for name, share in (("freeze_norms", freeze_norms), ("observe", observe)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} is a share of the training, from 0 to 1, got {share}")
        self.freeze_norms, self.observe, self.accumulator_bits = freeze_norms, observe, accumulator_bits
        self.observers: list[Observer] = []
        otherwise = any(method.rounding in ("soft", "stochastic") for method in (self.weights, self.activations))
        self.reestimate_norms = otherwise if reestimate_norms is None else reestimate_norms
        self.learned: list[LearnedGrid] = []
        self.signs: list[LearnedSigns] = []
        self.progress = 0.0
        self.norms: list[norms.Norm] = []

    def sees(self, batches: Iterable[list[Tensor]]) -> None:
        if self.data is None:
            self.data = batches

    def attach(self, graph: Graph) -> list[Change]:
        if not quantizers(graph):
            raise InputError(
                "quantization-aware training needs quantizers to train; run Quantize first, or train the graph that "
                "graphopt.optimize returns"
            )
        self.graph = graph
        found = grids(graph)
        for grid in found:
            transforms.check(graph, grid, self._method(grid).transform, self.accumulator_bits)
        rounded = [
            (node, self.weights if of_weights(graph, node) else self.activations) for node in sign_quantizers(graph)
        ]
        for node, method in rounded:
            signs.check(graph, node, method)
        has_norms = self.batch_norms and self.data is not None
        wanted = norms.without_signs(graph, self.data) if has_norms else {}  # type: ignore[arg-type]
        self.signs = [LearnedSigns(graph, node, method) for node, method in rounded]
        graph.refresh()
        changes: list[Change] = []
        if self.batch_norms:
            if self.data is None:
                raise InputError(
                    "batch norms begin with statistics: give data=[...], or batch_norms=False to leave them folded"
                )
            self.norms, changes = norms.insert(graph, self.data, wanted)
        self.learned = [LearnedGrid(graph, grid, self._method(grid), self.accumulator_bits) for grid in found]
        fixed = [each.grid for each in self.learned if each.scale is None]
        self.observers = observers(graph, fixed) if self.observe else []
        graph.refresh()
        return changes

    def helpers(self) -> Sequence[nn.Module]:
        return self.observers

    def watched(self, graph: Graph) -> Sequence[Node]:
        return [node for each in self.observers for node in each.watched]

    def loss(self, run: Run) -> Tensor | None:
        if self.progress < self.observe:
            for each in self.observers:
                each.observe(run)
        pulls = [found for each in self.signs if (found := each.loss()) is not None]
        return torch.stack(pulls).sum() if pulls else None

    def _method(self, grid: Grid) -> Method:
        return self.weights if grid.of_weights else self.activations

    def step(self, progress: float) -> None:
        self.progress = progress
        for observer in self.observers:
            observer.move()
        for each in self.learned:
            each.step(progress)
        for rounded in self.signs:
            rounded.step(progress)
        for norm in self.norms:
            norm.keep_positive(self.graph)
            norm.freeze(self.graph, progress >= self.freeze_norms)

    def settle(self, graph: Graph) -> None:
        if self.norms and self.reestimate_norms and self.data is not None:
            norms.reestimate(graph, self.norms, self.data)

    def finish(self, graph: Graph) -> list[Change]:
        for each in self.learned:
            each.settle()
        for rounded in self.signs:
            rounded.settle()
        graph.sweep()  # so that nothing but its layer reads a weight
        for norm in self.norms:
            norm.fold(graph)
        graph.refresh()
        self.learned, self.signs, self.norms, self.observers = [], [], [], []
        return []
