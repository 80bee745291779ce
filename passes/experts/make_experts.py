"""Split the neurons between two linear layers into experts, of which each token takes those that it needs most.

    y = W2 act(W1 x + b1) + b2

    MakeExperts(data=Calibration(tokens, graph), experts=64, take=32)

Neurons are sorted into experts by balanced k-means: those together whose first weights are alike (`by="weights"`), or that are
active together on data (`by="activity"`). A linear router scores experts by x. What is left out is replaced by its mean on
data, or by the best affine function of what goes into the activation, h = W1 x + b1, which costs one matrix more:

    y = W2 (open * (act(h) - a h - m)) + L x + c          open: 1 for the neurons of the `take` experts of highest score
    L = W2 diag(a) W1,   c = b2 + W2 (a b1 + m)           a, m: by least squares on data; `rest="mean"`: a = 0, L = 0

All of it is fitted on data in closed form; nothing is trained.
Every token has experts of its own, so a dense runtime computes all of them and saves no time: the work that changes speak of
is what a runtime with kernels for groups of tokens would do.

Needs:  a float graph with two linear layers around an activation, such as a transformer's.
Keeps:  the outputs, up to rounding, where all experts are taken.
Paper:  Zhang et al. 2022, "MoEfication: Transformer Feed-forward Layers are Mixtures of Experts".
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, WEIGHT
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.experts.clusters import balanced
from graphopt.passes.experts.routers import contributions, fitted
from graphopt.passes.experts.sites import Mlp, mlps
from graphopt.utils.checks import check_count, check_repeatable, matching
from graphopt.utils.errors import InputError

NAME = "experts"  # begins the names of what is added
DONE = f"{NAME}_router"  # in the name of a router


@dataclass(frozen=True)
class MakeExperts:
    """See the head of this file.

    Attributes:
        data: batches of inputs.
        experts: of each pair of layers; its neurons are a multiple of them.
        take: how many experts a token takes.
        layers: patterns of the first layers' names; `auto`: all pairs.
        by: `weights` or `activity`, what neurons are sorted by.
        rest: `mean` or `affine`, what stands for experts that are not taken.
        samples: tokens that are fitted on, at most.
        seed: of the first centers of k-means, and of what tokens are fitted on.

    Raises:
        InputError: no data; the graph is quantized, or has no such layers; more experts are taken than there are, or neurons are
            not a multiple of them.
    """

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    experts: int = 16
    take: int = 8
    layers: str | Sequence[str] = "auto"
    by: str = "weights"
    rest: str = "mean"
    samples: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("experts", self.experts)
        check_count("take", self.take)
        check_count("samples", self.samples)
        if self.take > self.experts:
            raise InputError(f"a token cannot take {self.take} of {self.experts} experts")
        if self.by not in ("weights", "activity"):
            raise InputError(f"neurons are sorted by 'weights' or 'activity', got {self.by!r}")
        if self.rest not in ("affine", "mean"):
            raise InputError(f"what is left out is replaced by an 'affine' function or the 'mean', got {self.rest!r}")
        if isinstance(self.layers, str) and self.layers != "auto":
            raise InputError(f"layers are 'auto' or a list of patterns, got {self.layers!r}")
        if self.data is None:
            raise InputError("MakeExperts fits routers on data; pass data=Calibration(tokens, graph)")
        check_repeatable(self.data)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if quantizers(graph):
            raise InputError("the graph is quantized; make experts of the float graph, and quantize afterwards")
        chosen = self._chosen(mlps(graph))
        with torch.no_grad():
            seen = self._seen(graph, chosen)
            changes = [self._split(graph, mlp, *seen[mlp.up]) for mlp in chosen]
        graph.refresh()
        return changes

    def _chosen(self, every: list[Mlp]) -> list[Mlp]:
        known = [mlp for mlp in every if mlp.neurons % self.experts == 0]
        if not known:
            counts = ", ".join(f"{mlp.name!r}: {mlp.neurons}" for mlp in every)
            why = f"their neurons are no multiple of {self.experts} experts ({counts})" if every else "there are none"
            raise InputError(f"no two linear layers with an activation in between can be split: {why}")
        return matching(known, self.layers, lambda mlp: mlp.name, "no layer to split is called", "layers")

    def _seen(self, graph: Graph, chosen: list[Mlp]) -> dict[Node, tuple[Tensor, ...]]:
        """What each first layer reads and gives, and what its activation gives: some tokens of each batch, [samples, ...]."""
        assert self.data is not None
        executor, generator = Executor(graph), torch.Generator().manual_seed(self.seed)
        parts: dict[Node, list[tuple[Tensor, ...]]] = {mlp.up: [] for mlp in chosen}
        batches = list(self.data)
        if not batches:
            raise InputError("the data have no samples to fit routers on")
        each = max(1, -(-self.samples // len(batches)))
        for batch in batches:
            wanted = {mlp.up: (operand(mlp.up), mlp.up, mlp.activation) for mlp in chosen}
            values = executor.run([node for nodes in wanted.values() for node in nodes], batch)
            for up, nodes in wanted.items():
                flat = [values[node].reshape(-1, values[node].shape[-1]) for node in nodes]
                rows = torch.randperm(len(flat[0]), generator=generator)[:each]
                parts[up].append(tuple(value[rows].float() for value in flat))
        return {up: tuple(map(torch.cat, zip(*found, strict=True))) for up, found in parts.items()}

    def _split(self, graph: Graph, mlp: Mlp, x: Tensor, before: Tensor, active: Tensor) -> Change:
        weight = graph.tensor(mlp.up.args[WEIGHT])  # type: ignore[arg-type]
        points = torch.nn.functional.normalize(weight.float(), dim=1)
        if self.by == "activity":
            points = torch.nn.functional.normalize((active - active.mean(0)).t(), dim=1)
        order = balanced(points, self.experts, seed=self.seed).argsort(stable=True)
        slope, start = _affine(before[:, order], active[:, order], flat=self.rest == "mean")
        second = graph.tensor(mlp.down.args[WEIGHT])[:, order]  # type: ignore[arg-type]
        left_out = active[:, order] - slope * before[:, order] - start
        wanted = contributions(left_out, second.float(), self.experts)
        router = fitted(x, wanted)
        self._rewrite(graph, mlp, order, *(part.to(second.dtype) for part in (slope, start, *router)))
        inputs, outputs = weight.shape[1], second.shape[0]
        full = mlp.neurons * (inputs + outputs)
        left = full * self.take / self.experts + inputs * (self.experts + (outputs if self.rest == "affine" else 0))
        size = mlp.neurons // self.experts
        return Change(
            mlp.name,
            f"{self.take} of {self.experts} experts of {size} neurons for each token, {left / full:.0%} of its "
            "multiply-accumulates with the router",
        )

    def _rewrite(
        self, graph: Graph, mlp: Mlp, order: Tensor, slope: Tensor, start: Tensor, weight: Tensor, scored: Tensor
    ) -> None:
        up, activation, down = mlp.up, mlp.activation, mlp.down
        first: Tensor = graph.tensor(up.args[WEIGHT])  # type: ignore[arg-type]
        second: Tensor = graph.tensor(down.args[WEIGHT])  # type: ignore[arg-type]
        bias = _bias(graph, down)
        graph.set_constant(up, WEIGHT, first[order])
        own = _bias(graph, up)
        if own is not None:
            graph.set_bias(up, own[order])
        graph.set_constant(down, WEIGHT, second[:, order])
        shift = second[:, order] @ (start if own is None else start + slope * own[order])
        graph.set_bias(down, shift if bias is None else bias + shift)
        behind = graph.after(activation)
        names = (f"{mlp.name}.{DONE}.weight", f"{mlp.name}.{DONE}.bias")
        constants = [graph.add_constant(n, t, before=behind) for n, t in zip(names, (weight, scored), strict=True)]
        scores = graph.call(aten.linear.default, operand(up), *constants, before=behind, like=up)
        best = graph.call(aten.topk.default, scores, self.take, -1, True, True, before=behind, like=up)
        values = graph.call(operator.getitem, best, 0, before=behind, like=up)
        least = graph.call(aten.slice.Tensor, values, -1, self.take - 1, self.take, before=behind, like=up)
        opened = graph.call(aten.ge.Tensor, scores, least, before=behind, like=up)
        opened = graph.call(aten.unsqueeze.default, opened, -1, before=behind, like=up)
        size = mlp.neurons // self.experts
        middle = graph.add_constant(f"{mlp.name}.{NAME}_start", start, before=behind)
        zero = graph.add_constant(f"{mlp.name}.{NAME}_zero", torch.zeros((), dtype=start.dtype), before=behind)
        centred = graph.call(aten.sub.Tensor, activation, middle, before=behind, like=activation)
        if self.rest == "affine":
            slopes = graph.add_constant(f"{mlp.name}.{NAME}_slope", slope, before=behind)
            line = graph.call(aten.mul.Tensor, up, slopes, before=behind, like=activation)
            centred = graph.call(aten.sub.Tensor, centred, line, before=behind, like=activation)
        parts = graph.call(aten.unflatten.int, centred, -1, [self.experts, size], before=behind, like=activation)
        taken = graph.call(aten.where.self, opened, parts, zero, before=behind, like=activation)
        flat = graph.call(aten.flatten.using_ints, taken, -2, -1, before=behind, like=activation)
        down.replace_input_with(activation, flat)
        if self.rest == "affine":
            matrix = (second[:, order] * slope) @ first[order]
            readers, last = list(down.users), graph.after(down)
            constant = graph.add_constant(f"{mlp.name}.{NAME}_rest", matrix, before=last)
            rest = graph.call(aten.linear.default, operand(up), constant, before=last, like=down)
            total = graph.call(aten.add.Tensor, down, rest, before=last, like=down)
            for reader in readers:
                reader.replace_input_with(down, total)


def _affine(before: Tensor, active: Tensor, *, flat: bool) -> tuple[Tensor, Tensor]:
    """Slope and start, [neurons], of the line that is next to an activation on data; `flat`: without a slope."""
    middle, mean = before.mean(0), active.mean(0)
    apart = before - middle
    slope = (apart * active).sum(0) / apart.square().sum(0).clamp(min=1e-12)
    slope = torch.zeros_like(slope) if flat else slope
    return slope, mean - slope * middle


def _bias(graph: Graph, layer: Node) -> Tensor | None:
    return graph.tensor(layer.args[BIAS]) if len(layer.args) > BIAS and layer.args[BIAS] is not None else None  # type: ignore[arg-type]
