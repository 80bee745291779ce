"""Fit a chain through the activation behind it: what the activation cuts off need not be right.

    minimize    sum | f(y) - f(D x + b) |^2          f: batch norm, if any, and a function of each element
                                                      y: what the layer should give    D: the chain's dense weight

`alternate`, for f that clip (ReLU, ReLU6): with auxiliary responses z, in turn

    z      minimizes  | f(y) - f(z) |^2 + penalty | z - (D x + b) |^2       element by element, in closed form
    D, b   the chain nearest to the least-squares fit of z

under a low penalty first, then a high one. `descend_rows`, for any f: some steps of gradient descent on all factors.

Both work on a sample of rows of fixed size; what does not lessen the error on it is not taken.

Paper:  Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import rows
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import clip_of, function_of_one
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.fitting import Problem

if TYPE_CHECKING:
    from graphopt.passes.factorization.method import Method, Ranks

ROWS = 24576  # in all; fewer where they would not fit into `BYTES`
BYTES = 2**28
PENALTIES = (0.01,) * 8 + (1.0,) * 8
STEPS = 6  # of the search for factors in each turn


@dataclass(frozen=True)
class Activation:
    """What is computed of each element of a layer's result: a batch norm's s y + t, and a function.

    Attributes:
        scale, shift: [out]; ones and zeros without a batch norm.
        call: the activation.
    """

    scale: Tensor
    shift: Tensor
    call: Node

    @classmethod
    def behind(cls, graph: Graph, node: Node, channels: int) -> Activation | None:
        """The activation that alone reads a call, or alone reads the batch norm that does."""
        scale, shift = torch.ones(channels), torch.zeros(channels)
        reader = _only(node)
        if (norm := BatchNorm.of(reader)) is not None:
            weight, bias = (graph.tensor(a) if a is not None else None for a in (norm.weight, norm.bias))
            mean, var = graph.tensor(norm.mean), graph.tensor(norm.var)
            scale = torch.rsqrt(var + norm.eps) * (1 if weight is None else weight)
            shift = (0 if bias is None else bias) - mean * scale
            reader = _only(norm.node)
        return cls(scale, shift, reader) if reader is not None and function_of_one(reader) is not None else None

    @property
    def clips(self) -> tuple[float, float] | None:
        """The interval it clips to; None for any other function."""
        return clip_of(self.call)

    def __call__(self, y: Tensor) -> Tensor:
        """[rows, out] -> [rows, out]"""
        function = function_of_one(self.call)
        assert function is not None
        return function(y * self.scale + self.shift)


def _only(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class Sample:
    """Rows of a layer's input with the wanted outputs, drawn evenly from all batches: x [n, d], y [n, out]."""

    def __init__(self, layer: Layer, batches: int) -> None:
        self.layer, self.batches = layer, max(1, batches)
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def update(self, x: Tensor, wanted: Tensor) -> None:
        found, y = rows(self.layer, x).flatten(0, 1), wanted.flatten(0, 1)
        most = min(ROWS, BYTES // (4 * (found.shape[1] + y.shape[1]))) // self.batches
        picked = torch.randperm(len(found), generator=self._generator)[: max(1, most)]
        self._x.append(found[picked])
        self._y.append(y[picked])

    @property
    def x(self) -> Tensor:
        return torch.cat(self._x)

    @property
    def y(self) -> Tensor:
        return torch.cat(self._y)


@dataclass
class Fitted:
    """A chain and its bias [out]; `loss` on the sample, behind the activation."""

    chain: Chain
    bias: Tensor
    loss: float = float("inf")


class Through:
    """Betters a chain on a sample, through its activation."""

    def __init__(self, sample: Sample, activation: Activation, start: Fitted) -> None:
        self.x, self.y, self.f = sample.x, sample.y, activation
        self.aim = activation(self.y)
        self.best = Fitted(start.chain, start.bias, self.loss(start.chain, start.bias))

    def respond(self, chain: Chain, bias: Tensor) -> Tensor:
        return self.x @ chain.dense().flatten(1).to(self.x).T + bias.to(self.x)

    def loss(self, chain: Chain, bias: Tensor) -> float:
        return float((self.f(self.respond(chain, bias)) - self.aim).square().mean())

    def offer(self, chain: Chain, bias: Tensor) -> None:
        loss = self.loss(chain, bias)
        if loss < self.best.loss:
            self.best = Fitted(chain, bias, loss)

    def alternate(self, layer: Layer, method: Method, ranks: Ranks, problem: Problem) -> None:
        """Zhang's alternation; `problem` is the one that the chain was fitted to."""
        bounds = self.f.clips
        if bounds is None:
            return
        mean = self.x.mean(0)
        centred = self.x - mean
        factor = torch.linalg.cholesky(problem.metric)
        chain, bias = self.best.chain, self.best.bias
        for penalty in PENALTIES:
            z = _auxiliary(self.f, self.aim, self.y, self.respond(chain, bias), bounds, penalty)
            middle = z.mean(0)
            residual = z - middle - centred @ problem.weight.T.to(centred)
            change = torch.cholesky_solve((centred.T @ residual).double() / len(z), factor)
            chain = method.fit(layer, Problem(problem.weight + change.T, problem.metric), ranks, chain, STEPS)
            bias = middle.double() - chain.dense().flatten(1).double() @ mean.double()
            self.offer(chain, bias)

    def descend_rows(self, steps: int, rate: float = 1e-3, batch: int = 1024) -> None:
        """Adam on all factors and the bias, at a learning rate relative to the size of each."""
        chain = self.best.chain
        factors = [w.detach().to(self.x).clone().requires_grad_() for w in chain.weights]
        bias = self.best.bias.detach().to(self.x).clone().requires_grad_()
        groups = [
            {"params": [p], "lr": rate * float(p.detach().square().mean().sqrt().clamp(min=1e-3))}
            for p in [*factors, bias]
        ]
        search = torch.optim.Adam(groups)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(search, steps)
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for _ in range(steps):
                picked = torch.randint(len(self.x), (batch,), generator=generator)
                dense = chain.with_weights(factors).dense().flatten(1)
                loss = (self.f(self.x[picked] @ dense.T + bias) - self.aim[picked]).square().mean()
                search.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                search.step()
                falling.step()
        self.offer(chain.with_weights([f.detach() for f in factors]), bias.detach().double())


def _auxiliary(
    f: Activation, aim: Tensor, y: Tensor, response: Tensor, bounds: tuple[float, float], penalty: float
) -> Tensor:
    """The z nearest to the response whose activation is nearest to the aim: [rows, out], before the batch norm."""
    low, high = bounds
    inside = response * f.scale + f.shift
    options = [torch.clamp((penalty * inside + aim) / (penalty + 1), low, high)]
    if low > -float("inf"):
        options.append(inside.clamp(max=low))
    if high < float("inf"):
        options.append(inside.clamp(min=high))
    costs = torch.stack([(o.clamp(low, high) - aim) ** 2 + penalty * (o - inside) ** 2 for o in options])
    z = torch.stack(options).gather(0, costs.argmin(0, keepdim=True))[0]
    strong = f.scale.abs() > 1e-2 * f.scale.abs().median()
    return torch.where(strong, (z - f.shift) / torch.where(strong, f.scale, torch.ones_like(f.scale)), y)
