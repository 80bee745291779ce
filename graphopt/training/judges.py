"""A score for `evaluate` by inputs that no network has learned by heart.

    train(graph, (x, y), compress=[Response(teacher)], evaluate=Unseen(held_out, teacher))

A network that is compressed was trained before, mostly on all the data that there are. On images held out of the training that
follows it is better than on new ones, and loses that as it trains: their accuracy favours the state that it began with, and early
epochs. Mixtures of two of them are new to everybody:

    (x + x') / 2                              Zhang et al. 2018, "mixup"
    the first half of x, the second of x'     Yun et al. 2019, "CutMix"

With answers p to a mixture, and q of a reference (the teacher, or the network as it was), the loss on one kind of mixtures is
the mean of sum q log(q / p); the score is -10 times the mean of its decimal logarithm over both kinds, in dB. Labels do not
count: cross entropy with those of both images is lowest for networks that are unsure, and the longer one trains, the surer it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.training.distillation.teachers import evaluating
from graphopt.training.losses import output
from graphopt.utils.errors import InputError

Model = Callable[..., Any]


class Unseen:
    """See the head of this file.

    Args:
        inputs: held out, for a model of one input; [N, ...], two at least. Whole numbers, such as tokens, are taken as they are.
        reference: a function whose answers are good ones; a module is asked in eval mode.
        classes: whether answers are logits [N, classes, ...]; else numbers, whose squared differences from the reference's count,
            as a share of the power of these.
        batch_size: of evaluations.

    Raises:
        InputError: fewer than two inputs.
    """

    def __init__(self, inputs: Tensor, reference: Model, *, classes: bool = True, batch_size: int = 64) -> None:
        if len(inputs) < 2:
            raise InputError(f"mixtures need two inputs at least, got {len(inputs)}")
        self.views, self.size, self.classes = mixtures(inputs), batch_size, classes
        with evaluating(reference):
            self.wanted = [self.answers(reference, view) for view in self.views]

    def __call__(self, model: Model) -> float:
        pairs = zip(self.views, self.wanted, strict=True)
        losses = [self.apart(self.answers(model, view), wanted) for view, wanted in pairs]
        return -10 * sum(math.log10(max(loss, 1e-20)) for loss in losses) / len(losses)

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
