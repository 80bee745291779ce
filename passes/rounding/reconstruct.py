"""Learn the rounding of a unit's weights, its biases and its steps together, against what the float network gives there.

    minimize    E | f(x^) - y |^2  +  lambda sum (1 - |2 h - 1|^beta)         x^: the unit's input in the quantized network
                                                                               y:  its output in the float network
`f` is the unit with soft rounding (`soft.py`); values inside it go through their quantizers, whose steps have the gradient of
learned step sizes (`graphopt.formats`). With `importance`, the squared gradient of the network's loss by y, errors count by it:
E sum (dL/dy)^2 (f - y)^2, the diagonal of the Fisher information.

Papers: Nagel et al. 2020, sections 3.3 and 3.4 (asymmetric, with the activation behind); Li et al. 2021, section 3.3 (Fisher);
        Esser et al. 2020 (steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.ops import operand
from graphopt.ir.quantizers import SCALE, is_scale_expression
from graphopt.ir.scales import free_step
from graphopt.passes.rounding.free import FreeWeight
from graphopt.passes.rounding.soft import BLUNT, SHARP, SoftWeight
from graphopt.passes.rounding.units import Unit
from graphopt.passes.rounding.weights import Learned, Rounded

HELD_OUT = 1 / 8  # of the samples
SMALL = (
    2**23
)  # bytes of the largest value computed at a time: what is larger is mapped anew by the allocator, page by page


@dataclass(frozen=True)
class Search:
    """How long and how fast; see `LearnRounding`."""

    iterations: int
    batch: int
    warmup: float
    rate: float
    regularizer: float
    learn_steps: bool
    seed: int


class Samples:
    """Tensors of one value batch by batch, read sample by sample; whole batches where `fixed`."""

    def __init__(self, parts: Sequence[Tensor], *, fixed: bool) -> None:
        self.parts, self.fixed = parts, fixed
        self.places = [(b, i) for b, part in enumerate(parts) for i in range(len(part))]
        self.bytes = max(part.nbytes // max(len(part), 1) for part in parts) or 1  # of the largest sample

    def __len__(self) -> int:
        return len(self.parts) if self.fixed else len(self.places)

    def take(self, picked: Sequence[int]) -> Tensor:
        if self.fixed:
            return self.parts[picked[0]]
        return torch.stack([self.parts[b][i] for b, i in (self.places[p] for p in picked)])


def _cut(picked: list[int], size: int) -> list[list[int]]:
    return [picked[i : i + size] for i in range(0, len(picked), size)]


class Reconstruction:
    """One unit being learned."""

    def __init__(
        self, graph: Graph, unit: Unit, weights: dict[Node, tuple[Rounded, SoftWeight | FreeWeight]], search: Search
    ) -> None:
        self.graph, self.unit, self.weights, self.search = graph, unit, weights, search
        self.fixed = not unit.by_sample
        self.biases: dict[Node, Tensor] = {}  # call that computes a layer's bias -> the bias being learned
        for rounded, _ in weights.values():
            if rounded.bias is not None and rounded.bias[0] is rounded.layer.bias:
                self.biases[rounded.bias[0]] = graph.tensor(rounded.bias[1]).clone().requires_grad_()
        self.steps: dict[Node, tuple[Tensor, Tensor, float]] = {}  # constant -> its value, growth, and limit
        for node in unit.nodes if search.learn_steps else []:
            if node.target is FAKE_QUANTIZE and (limit := free_step(graph, node)) is not None:
                constant = operand(node, SCALE)
                if all(user in unit.nodes or is_scale_expression(user) for user in constant.users):
                    value = graph.tensor(constant)
                    self.steps[constant] = (value, torch.zeros(()).requires_grad_(), max(limit, float(value)))
        self.share = 1.0  # of the samples of a gradient step, those computed at a time
        self.executors = {hard: Executor(graph, gradients=not hard) for hard in (False, True)}
        self.fixed_values = self.executors[True].run(self._fixed_calls(), {})

    def _fixed_calls(self) -> list[Node]:
        """The calls that nothing learned and no input leads to."""
        found: dict[Node, None] = {}
        learned = {*self.weights, *self.biases}
        for node in self.unit.nodes:
            sources = node.all_input_nodes
            if node not in learned and all((s.op == "get_attr" and s not in self.steps) or s in found for s in sources):
                found[node] = None
        return list(found)

    def step(self, constant: Node) -> Tensor:
        """The scale of a value as it is now.

        Its gradient is normalised by the root of the number of elements (LSQ): parts of a batch, each larger by the root of their
        share, would add up to more than the batch.
        """
        value, growth, limit = self.steps[constant]
        now = growth.detach()
        return (value * (now + (growth - now) * math.sqrt(self.share)).exp()).clamp(max=limit)

    def __call__(self, inputs: Sequence[Tensor], *, hard: bool = False) -> Tensor:
        """The unit's result with what is learned as it is now; `hard`: with every rounding at its end."""
        values = dict(zip(self.unit.inputs, inputs, strict=True)) | self.fixed_values | self.biases
        for node, (rounded, soft) in self.weights.items():
            weight = soft.hard_weight() if hard else soft.weight()
            values[node] = rounded.native(weight, rounded.weight(self.graph))
        values |= {constant: self.step(constant) for constant in self.steps}
        return self._result(values, hard)

    def _result(self, values: dict[Node, Any], hard: bool) -> Tensor:
        result: Tensor = self.executors[hard].run([self.unit.output], values)[self.unit.output]
        return result

    def learn(self, inputs: Sequence[Samples], wanted: Samples, importance: Samples | None) -> tuple[float, float]:
        """Learn; `learned` is then what was found.

        Returns:
            The relative error before and after, on samples that were held out.
        """
        data = [*inputs, wanted, *([importance] if importance is not None else [])]
        every = list(range(len(wanted)))
        held = every[:: max(2, round(1 / HELD_OUT))] if len(wanted) > 1 else every
        scale = self._scale(wanted)

        def error(result: Callable[[list[Tensor]], Tensor]) -> float:
            total = [self._error(data, part, result) * len(part) for part in self._small(data, held)]
            return float(sum(total)) / len(held) / scale

        before = error(lambda values: self._result(dict(zip(self.unit.inputs, values, strict=True)), hard=True))
        self._descend(data, sorted({*every} - {*held}) or every, scale)
        with torch.no_grad():
            after = error(lambda values: self(values, hard=True))
        return before, after

    def _parts(self, picked: list[int]) -> list[list[int]]:
        """Batches of the search."""
        return _cut(picked, 1 if self.fixed else self.search.batch)

    def _small(self, data: Sequence[Samples], picked: list[int]) -> list[list[int]]:
        """What is computed at a time."""
        return _cut(picked, 1 if self.fixed else max(1, SMALL // max(samples.bytes for samples in data)))

    def _error(self, data: Sequence[Samples], picked: list[int], result: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Mean square, by importance where that is known."""
        parts = [samples.take(picked) for samples in data]
        many = len(self.unit.inputs)
        lost = (result(parts[:many]) - parts[many]).square()
        return (lost * parts[many + 1] if len(parts) > many + 1 else lost).mean()

    def _descend(self, data: Sequence[Samples], samples: list[int], scale: float) -> None:
        search = self.search
        softs = [soft for _, soft in self.weights.values()]
        optimizer = torch.optim.Adam(self._groups(), betas=(0.9, 0.95))
        generator = torch.Generator().manual_seed(search.seed)
        parts: list[list[int]] = []
        for turn in range(search.iterations):
            if not parts:
                mixed = [samples[i] for i in torch.randperm(len(samples), generator=generator).tolist()]
                parts = self._parts(mixed)
            done, picked = turn / search.iterations, parts.pop(0)
            *most, last = self._small(data, picked)
            optimizer.zero_grad()
            with torch.enable_grad():
                for part in most:
                    self._loss(data, part, picked, scale).backward()  # type: ignore[no-untyped-call]
                loss = self._loss(data, last, picked, scale)
                if done >= search.warmup:
                    beta = BLUNT + (SHARP - BLUNT) * (1 - done) / (1 - search.warmup)
                    loss = loss + search.regularizer * sum(s.penalty(beta) / s.v.numel() for s in softs)
                loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
            optimizer.step()

    def _loss(self, data: Sequence[Samples], part: list[int], picked: list[int], scale: float) -> Tensor:
        """What part of the picked samples adds to their relative error."""
        self.share = len(part) / len(picked)
        return self._error(data, part, self) / scale * (len(part) / len(picked))

    def _groups(self) -> list[dict[str, Any]]:
        rate = self.search.rate
        groups = [{"params": [soft.v], "lr": rate, "first": rate} for _, soft in self.weights.values()]
        slow = [soft.growth for _, soft in self.weights.values() if soft.growth is not None]
        slow += [growth for _, growth, _ in self.steps.values()]
        if slow:
            groups.append({"params": slow, "lr": rate / 20, "first": rate / 20})
        for bias in self.biases.values():
            size = rate / 20 * float(bias.detach().square().mean().sqrt().clamp(min=1e-3))
            groups.append({"params": [bias], "lr": size, "first": size})
        return groups

    def _scale(self, wanted: Samples) -> float:
        """The mean square of what is wanted: losses are relative to it, so that one regularizer fits all units."""
        parts = [part.float().square().mean() for part in wanted.parts]
        return max(float(torch.stack(parts).mean()), 1e-12)

    def learned(self) -> Learned:
        """Codes, scales, biases and steps as they are now."""
        with torch.no_grad():
            steps = {str(constant.target): self.step(constant).detach() for constant in self.steps}
            layers = {}
            for rounded, soft in self.weights.values():
                codes, lattice = soft.harden()
                bias = self.biases.get(rounded.layer.bias) if rounded.layer.bias is not None else None
                layers[rounded.layer.node.name] = (codes, lattice.scale, None if bias is None else bias.detach())
            return Learned(layers, steps)
