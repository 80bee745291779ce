"""How much the network minds errors, from the curvature of its loss and the size of the rounding errors.

    s = 1/2  tr(H) / n  |W^ - W|^2           H: Hessian by the n elements of a weight, or of a value for one sample

The loss is the KL divergence to the network's own classes, whose Hessian needs no labels and is the Fisher information. Traces
are estimated with random signs (Hutchinson), drawn anew for every few samples:

    tr(H) = E[v' H v],  v in {-1, 1}^n       H v: the gradient of (gradient . v)

Papers: Dong et al. 2020, "HAWQ-V2", section 3; Hutchinson 1990.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.batches import count, split
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.cost import Numbers
from graphopt.passes.quantization.mixed.roundings import Roundings
from graphopt.passes.quantization.mixed.sensitivity import Divergence, log_classes
from graphopt.passes.quantization.mixed.space import Space
from graphopt.passes.quantization.mixed.trials import Trial
from graphopt.utils.progress import track

PART = 8  # samples whose second derivatives are held, and that share their signs


def traces(
    graph: Graph, layers: Sequence[Node], values: Sequence[Node], batches: Sequence[list[Tensor]], seed: int
) -> dict[Node, float]:
    """tr(H) / n of the loss per sample, by layer (for its weight) and by value."""
    weights = {node: layer.weight for node in layers if (layer := Layer.of(node))}
    constants = {weight: graph.tensor(weight).clone().requires_grad_() for weight in weights.values()}
    executor = Executor(graph, constants=constants, leaves=values, gradients=True)
    parts = [part for batch in batches for part in split(graph, batch, PART)]
    samples = sum(count(graph, part) for part in parts)
    total = dict.fromkeys([*layers, *values], 0.0)
    generator = torch.Generator().manual_seed(seed)
    for part in track(parts, "curvature"):
        found = executor.run([*values, *graph.outputs], part)
        with torch.enable_grad():
            own = log_classes(executor.floating(found)[0])
            loss = -(own.detach().exp() * own).sum()
            inputs = [*(constants[weights[node]] for node in layers), *(found[node] for node in values)]
            slopes = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
        for node, x, slope in zip(total, inputs, slopes, strict=True):
            elements = x.numel() / (count(graph, part) if node in found and graph.dynamic_batch else 1)
            total[node] += _curvature(slope, x, generator) / elements
    return {node: trace / samples for node, trace in total.items()}


def _curvature(slope: Tensor | None, x: Tensor, generator: torch.Generator) -> float:
    """v' H v by x alone, for random signs v; the Hessian of this loss has no negative curvature."""
    if slope is None or not slope.requires_grad:
        return 0.0
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    (curved,) = torch.autograd.grad((slope * signs).sum(), x, retain_graph=True, allow_unused=True)
    return 0.0 if curved is None else max(0.0, float((curved * signs).sum()))


def estimated(space: Space, divergence: Divergence, roundings: Roundings, seed: int) -> list[Numbers]:
    """Of every decision, what each of its choices costs by the quadratic."""
    layers = [n for d in space.decisions if d.kind == "weights" and len(d.choices) > 1 for n in d.nodes]
    values = [n for d in space.decisions if d.kind == "activations" and len(d.choices) > 1 for n in d.nodes]
    curvature = traces(space.graph, layers, values, divergence.batches, seed)
    found = [np.zeros(len(trials)) for trials in roundings.trials]
    for number, trials in enumerate(roundings.trials):
        for index, trial in enumerate(trials if len(trials) > 1 else ()):
            for node, own in trial.weights.items():
                weight = space.graph.tensor(operand(node, 1))
                found[number][index] += curvature[node] / 2 * float((own.weight - weight).double().square().sum())
    hooks = {
        node: partial(_errors, roundings.trials[number], node, curvature[node] / 2 / divergence.samples, found[number])
        for number, decision in enumerate(space.decisions)
        if decision.kind == "activations" and len(decision.choices) > 1
        for node in decision.nodes
    }
    for batch in divergence.batches if hooks else ():
        divergence.network.outputs(batch, Trial({}, hooks))
    return found


def _errors(trials: Sequence[Trial], node: Node, factor: float, found: Numbers, x: Tensor) -> Tensor:
    """Add the squared error of each choice for a value; the value itself stays."""
    for index, trial in enumerate(trials):
        found[index] += factor * float((trial.values[node](x) - x).double().square().sum())
    return x
