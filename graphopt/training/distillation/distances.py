"""How far a student is from its teacher: one number, or one for each sample [N].

The student comes first. What a teacher gives has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Values = Tensor | tuple[Tensor, ...]


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: the mean of squared differences."""
    return _per_sample((student - teacher).pow(2))


def apart(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: the sum of squared differences; for what has norm one, whose size does not count."""
    return (student - teacher).pow(2).flatten(1).sum(1)


def absolute(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: the mean of differences without sign."""
    return _per_sample((student - teacher).abs())


def huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared up to 1, linear beyond. Park et al. 2019."""
    return F.smooth_l1_loss(student, teacher)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: one less the cosine."""
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))


@dataclass(frozen=True)
class Divergence:
    """[N]: T^2 times the Kullback-Leibler divergence of classes softened by a temperature T, of logits [N, classes, ...].

    Hinton et al. 2015.
    """

    temperature: float = 4.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_s, log_t = (F.log_softmax(logits / self.temperature, 1) for logits in (student, teacher))
        return self.temperature**2 * _per_sample((log_t.exp() * (log_t - log_s)).sum(1))


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: the divergence of relations between tokens, logarithms of probabilities in the last dimension, averaged over heads and
    tokens. Wang et al. 2020."""
    impossible = teacher.isneginf() | student.isneginf()
    difference = torch.where(impossible, 0.0, teacher - student)
    return _per_sample((teacher.exp() * difference).sum(-1))


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: the squared maximum mean discrepancy of channels [N, C, P], with the kernel (x y)^2. Huang and Wang 2017."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.transpose(1, 2)).pow(2).mean((1, 2))

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def partial(student: Tensor, teacher: Tensor) -> Tensor:
    """[N]: squared differences, none where the student is below a teacher's value that is not over 0. Heo et al. 2019b."""
    free = (student <= teacher) & (teacher <= 0)
    return _per_sample(torch.where(free, 0.0, (student - teacher).pow(2)))


@dataclass(frozen=True)
class Boundary:
    """[N]: how far neurons are from the side of 0 where the teacher's are, by a margin. Heo et al. 2019a."""

    margin: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        active = teacher > 0
        missed = torch.where(active, F.relu(self.margin - student), F.relu(self.margin + student))
        return _per_sample(missed.pow(2))


@dataclass(frozen=True)
class Radial:
    """[N]: how singular vectors of two maps lie to each other. Lee et al. 2018.

    The teacher's first `count` vectors v, each with the student's vector of the largest cosine (and its sign) among the first
    count + 3, are weighted by the teacher's singular values (as a vector of norm one); compared is

        exp(-(v_first[c] - v_last[c'])^2 / 8)       for each pair of channels and each vector, summed
    """

    count: int = 1

    def __call__(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        first, last = ((student[at], teacher[at], teacher[at + 1]) for at in (0, 2))
        first_s, first_t = self.aligned(*first)
        last_s, last_t = self.aligned(*last)
        found = self.correlation(first_s, last_s) - self.correlation(first_t, last_t)
        return found.pow(2).flatten(1).sum(1)

    def aligned(self, student: Tensor, teacher: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [N, C, count] of both, the student's in the teacher's order and direction."""
        teacher, student = teacher[..., : self.count], student[..., : self.count + 3]
        cosines = student.transpose(1, 2) @ teacher
        nearest = cosines.abs().argmax(1, keepdim=True)
        signs = cosines.gather(1, nearest).sign()
        chosen = student.gather(2, nearest.expand(-1, student.shape[1], -1)) * signs
        shares = F.normalize(values[:, : self.count])[:, None]
        return chosen * shares, teacher * shares

    @staticmethod
    def correlation(first: Tensor, last: Tensor) -> Tensor:
        return torch.exp(-(first[:, :, None] - last[:, None]).pow(2) / 8)


def jacobian(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """[N]: squared distance of the gradients, each of norm one, of the teacher's likeliest class by the inputs.

    Srinivas and Fleuret 2018.
    """
    (own, x), (answer, same) = student, teacher
    likeliest = answer.argmax(1, keepdim=True)
    mine = _derivative(own.gather(1, likeliest), x, True)
    theirs = _derivative(answer.gather(1, likeliest), same, False)
    return (F.normalize(mine) - F.normalize(theirs)).pow(2).sum(1)


def sobolev(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """[N]: squared distance of the gradients of the outputs in one random direction. Czarnecki et al. 2017."""
    (own, x), (answer, same) = student, teacher
    direction = F.normalize(torch.randn_like(answer).flatten(1)).reshape(answer.shape)
    mine = _derivative(own * direction, x, True)
    theirs = _derivative(answer * direction, same, False)
    return (mine - theirs).pow(2).sum(1)


def _derivative(value: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), x, create_graph=create_graph, retain_graph=True)
    return found.flatten(1) if create_graph else found.detach().flatten(1)


@dataclass(frozen=True)
class Ranking:
    """How often the student has the order of two distances wrong, by a margin, over triples of samples; votes [N, N, N] of
    `votes` say which is the right one. You et al. 2017, "Learning from Multiple Teacher Networks"."""

    margin: float = 0.1

    def __call__(self, student: Tensor, votes: Tensor) -> Tensor:
        differences = student[:, :, None] - student[:, None]  # distance of i and j, less that of i and k
        wrong = F.relu(self.margin - votes * differences)
        return (wrong * (votes != 0)).sum() / (votes != 0).sum().clamp(min=1)


def votes(teachers: list[Tensor]) -> Tensor:
    """[N, N, N]: for samples i, j, k, whether most teachers have i further from j (1) or from k (-1); from distances [N, N]."""
    signs = [(each[:, :, None] - each[:, None]).sign() for each in teachers]
    return torch.stack(signs).sum(0).sign()


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


Distance = Callable[..., Tensor]
