"""Sub-networks that are drawn in every step, so that each answers well without training of its own.

    graphopt.train(graph, loader, compress=[Sandwich(samples=2)], epochs=5)

    SinglePath            one sub-network in a step, each option equally likely       Guo et al. 2020, SPOS
    SinglePath(fair=True) as many as a choice has options, each option once           Chu et al. 2021, FairNAS
    Sandwich              the largest, the smallest, and some drawn ones, which learn from the largest's answers
                                                                                      Yu and Huang 2019, US-Nets; BigNAS
    Progressive           the same, but kernels may shrink first, then depth, then widths   Cai et al. 2020, OFA

The first option of every choice counts as its largest, the last as its smallest. Afterwards the graph has the largest again.
Running statistics of batch norms hold for one network alone: before an evaluation they are measured anew for the largest; whoever
extracts another one measures its own (`ReestimateBatchNorm`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.execution.norm_statistics import pooled_statistics
from graphopt.ir.choices import KINDS, LiveChoice, assign, choices
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.compression import Compression, Run
from graphopt.training.losses import output
from graphopt.utils.errors import InputError

SETTLING = 4  # batches that statistics are measured on
STAGES = (("kernel", 0.0), ("block", 0.25), ("width", 0.5))  # of progressive shrinking, by the progress they begin at


class Sampled(Compression):
    """What all of them share; `draw` says which sub-networks a step trains.

    Args:
        distill: whether sub-networks behind the first of a step learn from its answers, and not from the task's targets.
        temperature: of those answers.
    """

    def __init__(self, *, distill: bool = True, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise InputError(f"temperature must be over 0, got {temperature}")
        self.distill, self.temperature = distill, temperature
        self.known: list[LiveChoice] = []
        self.data: list[list[Tensor]] = []
        self.drawn: list[tuple[int, ...]] = []

    def draw(self, progress: float) -> list[tuple[int, ...]]:
        """The sub-networks of one step, by the options of each choice."""
        raise NotImplementedError

    def sees(self, batches: Iterable[list[Tensor]]) -> None:
        self.data = list(islice(batches, SETTLING))

    def attach(self, graph: Graph) -> list[Change]:
        self.graph, self.known = graph, choices(graph)
        if not self.known:
            raise InputError(
                "the graph has no choices to sample; make it elastic first: graphopt.passes.elastic.Elastic()(graph)"
            )
        return []

    @property
    def largest(self) -> tuple[int, ...]:
        return (0,) * len(self.known)

    def step(self, progress: float) -> None:
        self.drawn = self.draw(progress)
        assign(self.graph, self.drawn[0], known=self.known)

    def loss(self, run: Run) -> Tensor | None:
        assert run.again is not None
        assert run.task is not None
        parts = []
        for chosen in self.drawn[1:]:
            assign(self.graph, chosen, known=self.known)
            other = run.again()
            parts.append(self._divergence(other, run) if self.distill else run.task(other.outputs))
        assign(self.graph, self.drawn[0], known=self.known)
        return torch.stack(parts).sum() if parts else None

    def _divergence(self, other: Run, run: Run) -> Tensor:
        mine, theirs = output(other.outputs) / self.temperature, output(run.outputs).detach() / self.temperature
        divergence = F.kl_div(F.log_softmax(mine, 1), F.log_softmax(theirs, 1), log_target=True, reduction="none").sum(
            1
        )
        return self.temperature**2 * divergence.mean()

    def settle(self, graph: Graph) -> None:
        assign(graph, self.largest, known=self.known)
        settle_norms(graph, self.data)

    def finish(self, graph: Graph) -> list[Change]:
        assign(graph, self.largest, known=self.known)
        return []


class SinglePath(Sampled):
    """Options drawn uniformly; `fair`: in each step every option of every choice once, by as many networks' losses."""

    def __init__(self, *, fair: bool = False) -> None:
        super().__init__(distill=False)
        self.fair = fair

    def draw(self, progress: float) -> list[tuple[int, ...]]:
        if not self.fair:
            return [random_options(self.known)]
        most = max(map(len, self.known))
        columns = [_permuted(len(choice), most) for choice in self.known]
        return list(zip(*columns, strict=True))


class Sandwich(Sampled):
    """The largest, the smallest, and `samples` drawn ones."""

    def __init__(self, samples: int = 2, *, distill: bool = True, temperature: float = 1.0) -> None:
        super().__init__(distill=distill, temperature=temperature)
        if samples < 0:
            raise InputError(f"samples must be at least 0, got {samples}")
        self.samples = samples

    def open(self, progress: float) -> list[bool]:
        """Which choices may have other options than their first."""
        return [True] * len(self.known)

    def draw(self, progress: float) -> list[tuple[int, ...]]:
        opened = self.open(progress)
        smallest = tuple(len(choice) - 1 for choice in self.known)
        drawn = [self.largest, smallest, *(random_options(self.known) for _ in range(self.samples))]
        return [tuple(o if free else 0 for o, free in zip(options, opened, strict=True)) for options in drawn]


class Progressive(Sandwich):
    """The same with choices that open one kind after the other.

    Args:
        stages: kinds of choices and the progress, 0 to 1, from which on they are sampled.
    """

    def __init__(
        self,
        samples: int = 2,
        *,
        stages: Sequence[tuple[str, float]] = STAGES,
        distill: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(samples, distill=distill, temperature=temperature)
        for kind, begins in stages:
            if kind not in KINDS or not 0 <= begins < 1:
                raise InputError(
                    f"stages are kinds ({', '.join(KINDS)}) and a progress from 0 to 1, got {(kind, begins)!r}"
                )
        self.stages = dict(stages)

    def open(self, progress: float) -> list[bool]:
        return [progress >= self.stages.get(choice.kind, 0.0) for choice in self.known]


def random_options(known: Sequence[LiveChoice]) -> tuple[int, ...]:
    """An option of each choice, drawn by torch's random numbers."""
    return tuple(int(torch.randint(len(choice), ())) for choice in known)


def _permuted(options: int, count: int) -> list[int]:
    """So many options, every one as often as the others but for one time."""
    found: list[int] = []
    while len(found) < count:
        found += torch.randperm(options).tolist()
    return found[:count]


@torch.no_grad()
def settle_norms(graph: Graph, data: Iterable[list[Tensor]]) -> None:
    """Let running statistics be those of the network that the graph is set to, in place."""
    with graph.evaluating():
        for norm, moments in pooled_statistics(graph, data):
            graph.parameter(norm.mean).copy_(moments.mean)
            graph.parameter(norm.var).copy_(moments.var)
