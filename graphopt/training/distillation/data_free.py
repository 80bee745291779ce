"""Distillation without data: a generator makes the inputs, and learns from the teacher what its training data look like.

    data_free(graph, teacher, steps=2000)

With answers t = softmax(teacher(x)) to a batch x = generator(noise), [N, classes], and the features f that the teacher's last
layer reads, the generator's loss is

    one_hot     the mean of -log t[i, argmax t[i]]             one class for each input
    activation  minus the mean of |f|                          features respond to it
    entropy     sum over classes of m log m, m = mean over i of t[i]       every class as often

each times its weight; the student's is the divergence of its answers to the same inputs from the teacher's. Both learn in
every step.

Paper: Chen et al. 2019, "Data-Free Learning of Student Networks" (DAFL). Their code has logarithms to base 10 in the entropy,
whose weight of 5 is 2.2 here.

Beside `graphopt.data.synthesize`, which makes inputs once, from the statistics that batch norms keep, this needs no batch norms,
and a training that is long enough for a generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.batches import Batch
from graphopt.training.compression import Compression, Run
from graphopt.training.distillation.distances import Divergence
from graphopt.training.distillation.learned import CONVOLUTIONS, NORMS, Shape
from graphopt.training.distillation.places import Place, features, number
from graphopt.training.distillation.teachers import Member, as_teacher
from graphopt.training.losses import output
from graphopt.training.report import TrainingReport
from graphopt.training.trainer import train
from graphopt.utils.errors import InputError


def data_free(
    graph: Graph,
    teacher: Any,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    generator: nn.Module | None = None,
    compress: Sequence[Compression] = (),
    **options: Any,
) -> TrainingReport:
    """Train a graph on what a generator makes, without data.

    Args:
        teacher: a network; see `DataFree`.
        steps: batches of one epoch.
        generator: see `DataFree`.
        compress: what learns beside it; `QuantizationAware` needs `data=` of its own for the first statistics.
        options: of `graphopt.train`.

    Raises:
        InputError: as `DataFree`; fewer than one step, batches of fewer than two.
    """
    if steps < 1 or batch_size < 2:
        raise InputError(f"steps must be at least 1, batch_size at least 2, got {steps} and {batch_size}")
    blank = torch.zeros(1, *_only_input(graph)).expand(batch_size, *_only_input(graph))
    return train(graph, [blank] * steps, compress=[DataFree(teacher, generator=generator), *compress], **options)


class DataFree(Compression):
    """See the head of this file. Comes first among compressions; of the data, only the number of samples in each batch counts.

    Args:
        teacher: a module or graph that answers classes, [N, classes].
        generator: a module from noise [N, noise] to inputs; None: `Generator`, whose inputs have mean 0 and deviation 1 in every
            channel, as normalized images do.
        noise: how many numbers it begins with.
        one_hot, activation, entropy: weights of its loss.
        temperature: of the student's divergence; the paper has 1.
        seed: of the generator.

    Raises:
        InputError: weights below 0 or a temperature not over 0; with the graph: not exactly one input of floats, a teacher
            that is a function, or whose last layer reads nothing that can be found.
    """

    def __init__(
        self,
        teacher: Any,
        *,
        generator: nn.Module | None = None,
        noise: int = 100,
        one_hot: float = 1.0,
        activation: float = 0.1,
        entropy: float = 2.2,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if min(one_hot, activation, entropy) < 0 or not temperature > 0:
            raise InputError("the weights of a generator's loss are at least 0, the temperature is over 0")
        members = as_teacher(teacher).members()
        if len(members) != 1:
            raise InputError(f"learning without data is from one teacher, got {len(members)}")
        self.teacher: Member = members[0]
        self.generator, self.noise, self.seed = generator, noise, seed
        self.weights, self.divergence = (one_hot, activation, entropy), Divergence(temperature)
        self.features: list[Place] = []
        self.made: Tensor | None = None

    def attach(self, graph: Graph) -> list[Change]:
        self.teacher.attach(graph)
        self.features = features(self.teacher.graph(graph))
        if not self.features:
            raise InputError("the teacher has no layer whose inputs could respond to what is generated")
        if self.generator is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.generator = Generator(self.noise, _only_input(graph))
        return []

    def helpers(self) -> Sequence[nn.Module]:
        assert self.generator is not None
        return [self.generator]

    def networks(self) -> Sequence[nn.Module]:
        return self.teacher.networks()

    def batch(self, batch: Batch) -> Batch:
        assert self.generator is not None
        self.made = self.generator(torch.randn(len(batch.inputs[0]), self.noise, device=batch.inputs[0].device))
        return Batch([self.made.detach()], None, given=self.made.detach())

    def loss(self, run: Run) -> Tensor:
        assert self.made is not None
        nodes = self.features[0].nodes
        answers, values = self.teacher.run(Batch([self.made], None), nodes, True)  # type: ignore[arg-type]
        (found,) = self.features[0].values(values)
        student = self.divergence(output(run.outputs), answers.detach()).mean()
        return student + self.generators(answers, found)

    def generators(self, answers: Tensor, found: Tensor) -> Tensor:
        """The generator's loss, from the teacher's logits [N, classes] and features [N, ...]."""
        mean = answers.softmax(1).mean(0)
        parts = (
            F.cross_entropy(answers, answers.argmax(1)),
            -found.abs().mean(),
            torch.special.xlogy(mean, mean).sum(),
        )
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()


class Generator(nn.Module):
    """From noise [N, noise] to inputs [N, C, *size] or [N, features]: a map of a quarter of the size, twice enlarged and
    convolved.

    Radford et al. 2016 (DCGAN), with nearest neighbours in place of strided convolutions, as in the paper.
    """

    def __init__(self, noise: int, shape: Shape, *, width: int = 64) -> None:
        super().__init__()
        channels, *size = shape
        self.first = (2 * width, *(max(1, -(-side // 4)) for side in size))
        self.sizes = [tuple(max(1, -(-side // 2)) for side in size), tuple(size)]
        convolution, norm = CONVOLUTIONS[max(0, len(size) - 1)], NORMS[max(0, len(size) - 1)]
        layer = nn.Linear if not size else lambda one, other: convolution(one, other, 3, padding=1)
        self.begin = nn.Linear(noise, int(torch.tensor(self.first).prod()))
        self.normed = norm(2 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(layer(inputs, outputs), norm(outputs), nn.LeakyReLU(0.2))
            for inputs, outputs in ((2 * width, 2 * width), (2 * width, width))
        )
        self.end = nn.Sequential(layer(width, channels), nn.Tanh(), norm(channels, affine=False))

    def forward(self, noise: Tensor) -> Tensor:
        value = self.normed(self.begin(noise).reshape(-1, *self.first))
        for block, size in zip(self.blocks, self.sizes, strict=True):
            value = block(F.interpolate(value, size=size) if size else value)
        found: Tensor = self.end(value)
        return found


def _only_input(graph: Graph) -> Shape:
    """The sizes of a graph's only input, behind the batch.

    Raises:
        InputError: there is another number of inputs, or it is no floats.
    """
    tensors = graph.example.tensors()
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].dim() > 5:
        raise InputError("inputs can be generated for a model of one floating-point input; this one has others")
    return tuple(map(number, tensors[0].shape[1:]))
