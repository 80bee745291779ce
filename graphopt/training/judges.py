"""A score for `evaluate` by inputs that no network has learned by heart.

    train(graph, (x, y), compress=[Response(teacher)], evaluate=Unseen(held_out, labels, reference=teacher))

A network that is compressed was trained before, mostly on all the data that there are. On images held out of the training that
follows it is better than on new ones, and loses that as it trains: their accuracy favours the state that it began with, and early
epochs. Mixtures of two of them are new to everybody:

    (x + x') / 2                              Zhang et al. 2018, "mixup"
    the first half of x, the second of x'     Yun et al. 2019, "CutMix"

With answers p to a mixture, and q of a reference (the teacher, or the network as it was), the loss on one kind of mixtures is

    mean of  -log p[label] / 2 - log p[label'] / 2  +  sum of q log(q / p)

each part where labels, or a reference, are given; the score is -10 times the mean of its decimal logarithm over both kinds,
in dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.training.distillation.teachers import evaluating
from graphopt.training.losses import output
from graphopt.utils.errors import InputError

Model = Callable[..., Any]


class Unseen:
    """See the head of this file.

    Args:
        inputs: held out, for a model of one input; [N, ...], two at least. Whole numbers, such as tokens, are taken as they are.
        labels: classes by number, [N].
        reference: a function whose answers are good ones.
        classes: whether answers are logits [N, classes, ...]; else numbers, whose squared differences from the reference's count,
            as a share of the power of these.
        batch_size: of evaluations.

    Raises:
        InputError: neither labels nor a reference, labels of another number or of a model without classes, fewer than two inputs.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        *,
        reference: Model | None = None,
        classes: bool = True,
        batch_size: int = 64,
    ) -> None:
        if labels is None and reference is None:
            raise InputError("there is nothing to judge by: give labels, a reference, or both")
        if len(inputs) < 2 or (labels is not None and (len(labels) != len(inputs) or not classes)):
            raise InputError("give two inputs at least, and a class by number for each, or no labels")
        self.views, self.size, self.classes = mixtures(inputs), batch_size, classes
        mixed = inputs.is_floating_point()
        self.labels = None if labels is None else [labels, labels.flip(0) if mixed else labels]
        with evaluating(reference):
            self.wanted = None if reference is None else [self.answers(reference, view) for view in self.views]

    def __call__(self, model: Model) -> float:
        losses = [self.loss(place, self.answers(model, view)) for place, view in enumerate(self.views)]
        return -10 * sum(math.log10(max(loss, 1e-20)) for loss in losses) / len(losses)

    def loss(self, place: int, answers: Tensor) -> float:
        """On one kind of mixtures."""
        found = 0.0
        if self.labels is not None:
            found += sum(float(F.cross_entropy(answers, each.long())) for each in self.labels) / 2
        if self.wanted is not None:
            found += self.apart(answers, self.wanted[place])
        return found

    def apart(self, answers: Tensor, wanted: Tensor) -> float:
        """How far answers are from a reference's."""
        if not self.classes:
            return float((answers - wanted).square().sum() / wanted.square().sum().clamp(min=1e-20))
        log_p, log_q = answers.log_softmax(1), wanted.log_softmax(1)
        return float((log_q.exp() * (log_q - log_p)).sum(1).mean())

    def answers(self, model: Model, view: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([output(model(part)).double().cpu() for part in torch.split(view, self.size)])


def mixtures(inputs: Tensor) -> list[Tensor]:
    """Each input with that as far from the end, in equal parts: as an average, and (where there is more than one element in the
    last dimension) half by half. Whole numbers stay as they are."""
    if not inputs.is_floating_point():
        return [inputs]
    other, half = inputs.flip(0), inputs.shape[-1] // 2
    found = [(inputs + other) / 2]
    if inputs.dim() > 1 and half:
        found.append(torch.cat([inputs[..., :half], other[..., half:]], -1))
    return found
