"""Learn from what another network answers.

    train(graph, loader, compress=[Response(teacher)])          beside the targets
    train(graph, inputs, compress=[Response(teacher)])          without any

`Response` is the loss of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network": with temperature T,

    T^2 * sum over classes of  p_t log(p_t / p_s),      p = softmax(logits / T), of teacher and student
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.data.batches import nested
from graphopt.ir.graph import Example, Graph
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.training.losses import output
from graphopt.utils.errors import InputError


class Response(Compression):
    """The teacher's answers as targets.

    Args:
        teacher: a module, a graph, or any function that takes what the model takes. It runs in eval mode, without gradients.
        temperature: of classes, [N, classes, ...]; None: answers are numbers, compared by squared error.
        weight: of this loss beside the task's, whose weight is one.

    Raises:
        InputError: a temperature or weight that is not over 0.
    """

    def __init__(self, teacher: Callable[..., Any], *, temperature: float | None = 4.0, weight: float = 1.0) -> None:
        for name, value in (("temperature", temperature), ("weight", weight)):
            if value is not None and not value > 0:
                raise InputError(f"{name} must be over 0, got {value}")
        self.teacher, self.temperature, self.weight = teacher, temperature, weight
        self.example: Example | None = None

    def attach(self, graph: Graph) -> list[Change]:
        self.example = graph.example
        if self.teacher is graph:
            raise InputError("the teacher is the graph that is trained; give a clone of it")
        return []

    def loss(self, run: Run) -> Tensor:
        student, teacher = output(run.outputs), output(self.answers(run.batch.inputs))
        if student.shape != teacher.shape:
            raise InputError(
                f"the teacher answers {list(teacher.shape)}, the graph {list(student.shape)}; they must be the same"
            )
        if self.temperature is None:
            return self.weight * F.mse_loss(student, teacher)
        log_s, log_t = (F.log_softmax(logits / self.temperature, 1) for logits in (student, teacher))
        divergence: Tensor = (log_t.exp() * (log_t - log_s)).sum(1).mean()
        return self.weight * self.temperature**2 * divergence

    @torch.no_grad()
    def answers(self, inputs: list[Tensor]) -> Any:
        """Of the teacher, to inputs of the graph."""
        assert self.example is not None
        args, kwargs = nested(self.example, inputs)
        if isinstance(self.teacher, Graph):
            with self.teacher.evaluating():
                return self.teacher(*args, **kwargs)
        training = {m: m.training for m in self.teacher.modules()} if isinstance(self.teacher, nn.Module) else {}
        for module in training:
            module.training = False
        try:
            return self.teacher(*args, **kwargs)
        finally:
            for module, mode in training.items():
                module.training = mode
