"""Modules that are trained along with a student and thrown away: adapters, discriminators, paraphrasers.

Each is made for the sizes of one pair of places (behind the batch: [C, *size], or [features]); as a distance, it is called with
the values of student and teacher.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Shape = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def projection(shape: Shape, outputs: int, kernel: int = 1) -> nn.Module:
    """From [N, C, *size] to [N, outputs, *size] by a convolution, or from [N, features] to [N, outputs] by a matrix."""
    dims = len(shape) - 1
    if not dims:
        return nn.Linear(shape[0], outputs)
    return CONVOLUTIONS[dims - 1](shape[0], outputs, kernel, padding=kernel // 2)


def norm(shape: Shape, channels: int) -> nn.Module:
    """Batch norm of [N, channels, *size], or [N, channels]."""
    return NORMS[max(0, len(shape) - 2)](channels)


class Adapter(nn.Module):
    """Gives a student the teacher's channels: a 1x1 convolution, with batch norm where `normed`.

    Romero et al. 2015 (FitNets) call it a regressor, Heo et al. 2019 a connector.
    """

    def __init__(self, student: Shape, teacher: Shape, *, normed: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(projection(student, teacher[0]))
        if normed:
            self.layers.append(norm(student, teacher[0]))

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = self.layers(value)
        return found


class Margin(nn.Module):
    """max(x, m), m the mean of a channel's negative values over the batches so far. Heo et al. 2019b (margin ReLU).

    The sums are buffers: a training that goes on has them.
    """

    total: Tensor
    count: Tensor

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(teacher[0]))
        self.register_buffer("count", torch.zeros(teacher[0]))

    @torch.no_grad()
    def forward(self, value: Tensor) -> Tensor:
        negative = value.clamp(max=0).transpose(0, 1).flatten(1)
        self.total += negative.sum(1)
        self.count += (negative < 0).sum(1)
        mean = self.total / self.count.clamp(min=1)
        return torch.maximum(value, mean.reshape(-1, *[1] * (value.dim() - 2)))


class Variational(nn.Module):
    """[N]: the negative logarithm of a Gaussian around what a regressor makes of the student's value, whose variance is learned
    for each of the teacher's channels c, without its constant. Ahn et al. 2019 (VID).

        mean over elements of  log s_c^2 / 2 + (t - regressor(s))^2 / (2 s_c^2),      s_c^2 = log(1 + exp(a_c)) + e
    """

    EPSILON, START = 1e-5, 5.0  # the least variance, and the first one

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        width = 2 * teacher[0]
        first, between, last = (
            projection(student, width), projection((width, *student[1:]), width), projection((width, *student[1:]), teacher[0])
        )  # fmt: skip
        self.regressor = nn.Sequential(first, nn.ReLU(), between, nn.ReLU(), last)
        start = math.log(math.expm1(self.START - self.EPSILON))
        self.scale = nn.Parameter(torch.full((teacher[0],), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        variance = F.softplus(self.scale) + self.EPSILON
        variance = variance.reshape(-1, *[1] * (teacher.dim() - 2))
        predicted: Tensor = self.regressor(student)
        error = (teacher - predicted).pow(2)
        return (error / variance + variance.log()).flatten(1).mean(1) / 2


class Factor(nn.Module):
    """[N]: differences without sign of factors of norm one, averaged over elements. Kim et al. 2018 (FT).

    The teacher's factor has `rate` times its channels, made by a paraphraser, which learns to rebuild what it reads (that error
    is added); the student's is made by a translator. The paper trains the paraphraser first, here both learn at once.
    """

    def __init__(self, student: Shape, teacher: Shape, *, rate: float = 0.5) -> None:
        super().__init__()
        wide, narrow = teacher[0], max(1, round(teacher[0] * rate))
        self.encoder = self._layers(teacher, (wide, narrow, narrow))
        self.decoder = self._layers((narrow, *teacher[1:]), (narrow, wide))
        self.decoder.append(projection(teacher, wide, 3))
        self.translator = self._layers(student, (student[0], narrow, narrow))

    @staticmethod
    def _layers(shape: Shape, widths: tuple[int, ...]) -> nn.Sequential:
        layers = nn.Sequential()
        for width in widths:
            layers.extend([projection(shape, width, 3), norm(shape, width), nn.LeakyReLU(0.1)])
            shape = (width, *shape[1:])
        return layers

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        factor: Tensor = self.encoder(teacher)
        rebuilt: Tensor = (self.decoder(factor) - teacher).pow(2).flatten(1).mean(1)
        mine, theirs = (F.normalize(each.flatten(1)) for each in (self.translator(student), factor.detach()))
        return (mine - theirs).abs().mean(1) + rebuilt


class Contrast(nn.Module):
    """[N]: a critic tells the teacher's embedding of the same sample from those of the other samples. Tian et al. 2020 (CRD).

        h(s, t) = exp(s t / temperature) / (exp(s t / temperature) + ratio)       embeddings [N, size] of norm one
        -log h(s_i, t_i) - sum over j != i of log(1 - h(s_i, t_j)),     and the same with the students' as the others

    `ratio` is the number of other samples as a share of the data set's. The paper draws the others from a memory of the whole
    data set; here they are those of the batch.
    """

    def __init__(
        self, student: Shape, teacher: Shape, *, size: int = 128, temperature: float = 0.07, ratio: float = 1.0
    ) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(math.prod(student), size), nn.Linear(math.prod(teacher), size)
        self.temperature, self.ratio = temperature, ratio

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        one, other = F.normalize(self.student(student.flatten(1))), F.normalize(self.teacher(teacher.flatten(1)))
        scores = one @ other.T / self.temperature - math.log(self.ratio)
        same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        positive = F.softplus(-scores.diagonal())
        negative = F.softplus(scores).masked_fill(same, 0.0)
        return 2 * positive + negative.sum(1) + negative.sum(0)


class Adversary(nn.Module):
    """[N]: a discriminator D learns which values are the teacher's, the student to be taken for it.

        D learns      (1 - D(t))^2 + D(s)^2           the student      (1 - D(s))^2

    Chung et al. 2020, where two networks learn from each other; with a fixed teacher it is the student's side.
    """

    def __init__(self, student: Shape, teacher: Shape, *, width: int = 32) -> None:
        super().__init__()
        shape = teacher
        self.discriminator = nn.Sequential()
        for kernel in (3, 3):
            self.discriminator.extend([projection(shape, width, kernel), nn.LeakyReLU(0.2)])
            shape = (width, *shape[1:])
        self.discriminator.extend([_Mean(), nn.Linear(width, 1), nn.Sigmoid()])

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        D = self.discriminator
        learned: Tensor = (1 - D(teacher)).pow(2) + D(student.detach()).pow(2)
        fooled = (1 - fixed(D, student)).pow(2)
        return (learned + fooled).squeeze(1)


class AnswerAdversary(nn.Module):
    """[N]: as `Adversary`, of logits, with three linear layers and logarithms. Shen et al. 2019 (MEAL).

    D learns      -log D(t) - log(1 - D(s))           the student      log(1 - D(s))
    """

    def __init__(self, student: Shape, teacher: Shape, *, width: int = 64) -> None:
        super().__init__()
        inputs = math.prod(teacher)
        self.discriminator = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        D = self.discriminator
        student, teacher = student.flatten(1), teacher.flatten(1)
        learned = F.softplus(-D(teacher)) + F.softplus(D(student.detach()))
        fooled = -F.softplus(fixed(D, student))
        return (learned + fooled).squeeze(1)


def fixed(module: nn.Module, value: Tensor) -> Tensor:
    """What a module makes of a value, whose gradient reaches the value and not the module's parameters."""
    held = {name: parameter.detach() for name, parameter in module.named_parameters()}
    found: Tensor = functional_call(module, held, (value,))
    return found


class _Mean(nn.Module):
    """Over positions."""

    def forward(self, value: Tensor) -> Tensor:
        return value.flatten(2).mean(2) if value.dim() > 2 else value
