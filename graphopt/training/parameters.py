"""What an optimizer learns, in groups with rates of their own, and how rates change over a training.

weights     matrices and kernels; the only ones that decay
scales      of quantizers, and what else they learn: their rate is a share of the weights'
others      biases, norms, slopes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import SCALE, is_signs, is_uniform
from graphopt.training.quantization.parameters import QUANTIZER_PARAMETER
from graphopt.utils.errors import InputError, alternatives

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
RATES = {"sgd": 0.01, "adamw": 1e-3}  # of fine-tuning, where none is given
MOMENTUM = 0.9
Schedule = Callable[[float], float]


def groups(graph: Graph, rate: float, decay: float, scale_rate: float) -> list[dict[str, Any]]:
    """The trainable parameters of a graph, each once.

    Args:
        rate: of weights and others. scale_rate: of scales, as a share of it. decay: of weights.

    Raises:
        InputError: there are none.
    """
    scales = {id(graph.parameter(n)) for n in graph.nodes if _is_scale(graph, n)}
    found: dict[str, list[nn.Parameter]] = {"weights": [], "others": [], "scales": []}
    for parameter in graph.parameters():
        if parameter.requires_grad:
            kind = "scales" if id(parameter) in scales else "weights" if parameter.dim() > 1 else "others"
            found[kind].append(parameter)
    if not any(found.values()):
        raise InputError("nothing of the graph is trainable: every parameter has requires_grad=False")
    rates = {"weights": (rate, decay), "others": (rate, 0.0), "scales": (rate * scale_rate, 0.0)}
    return [
        {"params": found[kind], "lr": lr, "weight_decay": wd, "name": kind}
        for kind, (lr, wd) in rates.items()
        if found[kind]
    ]


def helper_groups(modules: Iterable[nn.Module], rate: float, decay: float) -> list[dict[str, Any]]:
    """Those of modules beside a graph, as `groups`."""
    found = dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad)
    matrices, others = [p for p in found if p.dim() > 1], [p for p in found if p.dim() <= 1]
    parts = {"helpers": (matrices, decay), "helpers' others": (others, 0.0)}
    return [{"params": ps, "lr": rate, "weight_decay": wd, "name": name} for name, (ps, wd) in parts.items() if ps]


def load_helpers(modules: list[nn.Module], states: list[dict[str, Tensor]]) -> None:
    """Put back what a checkpoint kept of modules beside the graph.

    Raises:
        InputError: they are other modules.
    """
    shapes = [{name: t.shape for name, t in module.state_dict().items()} for module in modules]
    if shapes != [{name: t.shape for name, t in state.items()} for state in states]:
        raise InputError(
            "the checkpoint is of a training with other adapters or discriminators (another teacher, method or places); give "
            "another folder, or remove it to begin again"
        )
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)


def optimizer_of(optimizer: str | Make, parts: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """`sgd` (Nesterov's momentum), `adamw`, or what a function makes of the groups.

    Raises:
        InputError: an unknown name.
    """
    if callable(optimizer):
        return optimizer(parts)
    if optimizer == "sgd":
        return torch.optim.SGD(parts, momentum=MOMENTUM, nesterov=True)
    if optimizer == "adamw":
        return torch.optim.AdamW(parts)
    raise InputError(f"unknown optimizer {optimizer!r}; {alternatives(optimizer, RATES, 'optimizers')}, or a function")


def schedule_of(schedule: str | Schedule, warmup: float) -> Schedule:
    """The factor of all rates by the progress of the training, 0 to 1: a linear rise over `warmup`, then the schedule's.

    `cosine` falls to nothing, `constant` stays, `linear` falls evenly.
    """
    if callable(schedule):
        fall: Schedule = schedule
    elif schedule in SCHEDULES:
        fall = SCHEDULES[schedule]
    else:
        raise InputError(f"unknown schedule {schedule!r}; {alternatives(schedule, SCHEDULES, 'schedules')}")
    if not 0 <= warmup < 1:
        raise InputError(f"warmup is a share of the training, at least 0 and under 1, got {warmup}")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return fall((progress - warmup) / (1 - warmup))

    return factor


SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - t,
    "constant": lambda t: 1.0,
}


class Average:
    """An exponential moving average of parameters, whose values stand in for them while `applied`."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        if not 0 < decay < 1:
            raise InputError(f"the decay of the average must be over 0 and under 1, got {decay}")
        self.parameters, self.decay, self.steps = list(parameters), decay, 0
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are; the first steps count for more, so that the beginning is forgotten."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    def load(self, values: Iterable[Tensor], steps: int) -> None:
        """What a checkpoint kept."""
        self.values = [v.to(p.device) for v, p in zip(values, self.parameters, strict=True)]
        self.steps = steps

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the averages stand in for the parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            now = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(now)


def _is_scale(graph: Graph, node: Node) -> bool:
    """Whether a constant is the scale of a quantizer, or what one learns in its place."""
    if node.op != "get_attr":
        return False
    read_as = any((is_uniform(user) or is_signs(user)) and user.args[SCALE] is node for user in node.users)
    return read_as or bool(graph.fact(node, QUANTIZER_PARAMETER))
