"""Inputs made from a network alone: noise is bent until the batch norms see what they saw in training.

Every batch norm remembers mean and variance of its input, channel by channel, over the training data. Inputs are looked for that
leave the same, by gradient descent from noise:

    L(x) = sum over norms of  mean over channels of  (m - mean)^2 / var + (s / sqrt(var) - 1)^2        m, s: of the input for x

Ranges, biases and codes of weights can then be chosen on them as on real data. Channels whose variance is (nearly) nothing, and
networks without batch norm, have nothing to tell. `without_data` is what `optimize` does when it is given no calibration data.

Needs:  batch norms in eval mode with statistics of their own (not folded yet), floating-point inputs.
Paper:  Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework", section 3.1. (There the differences are not relative.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.data.calibration import Calibration, synthetic
from graphopt.execution.executor import Executor
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm
from graphopt.utils.progress import progress

STEPS, HASTY = 20, 10  # of gradient descent, and for networks of which few samples are too much work
RATE = 0.6  # of Adam, in the unit of the inputs
BATCH = 64
MOST, FEWEST = 256, 4  # samples
WORK = 1.7e11  # multiply-accumulates to spend: seconds of one core, and the same on every machine
ELEMENT = 100  # multiply-accumulates that take as long as one element of a value, its gradient included
MATCHED = 0.01  # of the loss, for each norm: statistics that are as near are the same
FLAT = 1e-6  # of the largest variance of a norm: channels below it are constant


def without_data(graph: Graph) -> Calibration:
    """Calibration batches for when there are no data: distilled from the batch norms, made-up noise where there are none.

    As many samples as there is work for: 4 for large networks to 256 for small ones.
    """
    floating = any(tensor.is_floating_point() for tensor in graph.example.tensors())
    if not floating or not any(BatchNorm.of(node) for node in graph.calls()):
        noise = synthetic(graph)
        reason = "the network has no batch norms" if floating else "its inputs are no floating-point numbers"
        noise.notes.append(f"no inputs could be distilled, because {reason}; ranges come from random inputs")
        return noise
    affordable = WORK / _work(graph)  # steps of single samples
    samples = int(min(MOST, max(FEWEST, affordable / STEPS)))
    steps = int(min(STEPS, max(HASTY, affordable / samples)))
    size = min(BATCH, samples)
    noise = synthetic(graph, batches=samples // size, size=size)
    found = Calibration([tuple(batch) for batch in distil(graph, noise, steps)], graph, synthetic=True)
    found.notes.append("calibration inputs were distilled from the statistics of the network's batch norms")
    return found


def _work(graph: Graph) -> int:
    """Multiply-accumulates of one step for one sample; a gradient takes as long as two runs."""
    return 3 * cost.macs(graph) + ELEMENT * cost.elements(graph)


def distil(graph: Graph, batches: Iterable[list[Tensor]], steps: int = STEPS, rate: float = RATE) -> list[list[Tensor]]:
    """Bend made-up batches until they look like the data the network was trained on.

    Args:
        graph: in eval mode, with batch norms.
        batches: where to begin, e.g. `graphopt.data.calibration.synthetic(graph)`; inputs that are not floating-point stay
            as they are.
        steps: of gradient descent on each batch, at most: it ends where the statistics match.
        rate: its learning rate.

    Returns:
        As many batches, of the same shapes.
    """
    begun = [list(batch) for batch in batches]
    match = _Statistics(graph)
    with progress("distilling inputs", len(begun) * steps) as advance:
        return [_bend(match, batch, steps, rate, advance) for batch in begun]


def _bend(
    match: _Statistics, batch: list[Tensor], steps: int, rate: float, advance: Callable[[], None]
) -> list[Tensor]:
    inputs = [t.clone().requires_grad_() if t.is_floating_point() else t for t in batch]
    learned = [t for t in inputs if t.requires_grad]
    best, found = float("inf"), [t.detach().clone() for t in inputs]
    optimizer = torch.optim.Adam(learned, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = match(inputs)
        if not torch.isfinite(loss):
            break
        if float(loss.detach()) < best:
            best, found = float(loss.detach()), [t.detach().clone() for t in inputs]
        if best < MATCHED * len(match.known):
            for _ in range(steps - step):
                advance()
            break
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)  # a batch norm need not see every input
        for tensor, gradient in zip(learned, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
        schedule.step()
        advance()
    return found


class _Statistics:
    """How far the statistics of a batch are from those that the batch norms remember; what is behind the last is not computed."""

    def __init__(self, graph: Graph) -> None:
        self.executor = Executor(graph, gradients=True)
        self.known: list[tuple[Node, Tensor, Tensor, Tensor]] = []
        for norm in (norm for node in graph.calls() if (norm := BatchNorm.of(node))):
            mean, var = graph.tensor(norm.mean), graph.tensor(norm.var)
            self.known.append((norm.input, mean, var, var > FLAT * var.max()))

    def __call__(self, batch: list[Tensor]) -> Tensor:
        values = self.executor.run([node for node, *_ in self.known], batch)
        with torch.enable_grad():
            return torch.stack([_distance(values[node], *statistics) for node, *statistics in self.known]).sum()


def _distance(x: Tensor, mean: Tensor, var: Tensor, alive: Tensor) -> Tensor:
    v, m = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    m, v, mean, var = (t[alive] for t in (m, v, mean, var))
    return ((m - mean).square() / var + ((v + 1e-12).sqrt() / var.sqrt() - 1).square()).mean()
