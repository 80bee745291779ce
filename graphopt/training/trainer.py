"""Train a captured graph: whatever passes have made of it, by gradients, with a teacher where there is one.

    report = graphopt.train(graph, loader, compress=[Response(model)], epochs=3, evaluate=accuracy)

The graph is an ordinary trainable module (`graph.module`), so any trainer may be used in place of this one. This one does the
common things: rates that rise and fall, gradients accumulated and clipped, an average of the weights, the best state kept, and
going on where it was interrupted, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.training import devices, processes
from graphopt.training.batches import Batch, Batches, Inputs
from graphopt.training.checkpoint import Checkpoint, task_of
from graphopt.training.compression import Compression, Run
from graphopt.training.forward import Forward, channels_last
from graphopt.training.losses import Loss, loss_of
from graphopt.training.options import Options
from graphopt.training.parameters import Average, groups, helper_groups, load_helpers, optimizer_of, schedule_of
from graphopt.training.report import Epoch, TrainingReport
from graphopt.utils.errors import InputError, NonFiniteError
from graphopt.utils.progress import progress

Evaluate = Callable[[Callable[..., Any]], float]


def train(
    graph: Graph,
    data: Any,
    *,
    loss: str | Loss | None = None,
    compress: Sequence[Compression] = (),
    evaluate: Evaluate | None = None,
    checkpoint: str | Path | None = None,
    options: Options | None = None,
    **changes: Any,
) -> TrainingReport:
    """Train a graph in place; it is left in the mode it was in, with the state that was best.

    Args:
        graph: any, quantized ones included.
        data: batches of inputs and targets; see `graphopt.training.batches`.
        loss: `cross_entropy`, `mse`, `l1`, `bce`, or a function of outputs and targets; see `graphopt.training.losses`.
        compress: what learns, or is learned from, beside the weights; see `graphopt.training.compression`.
        evaluate: takes a callable that behaves like the model and returns a score, higher is better. Run before and after each
            epoch; the best state is kept, so that the graph never ends below where it began. None: the last state is kept.
        checkpoint: a folder; an interrupted call with the same arguments goes on there.
        options, changes: see `Options`; any of its fields as a keyword.

    Returns:
        Loss and score of every epoch.

    Raises:
        InputError: data, targets or options do not fit. NonFiniteError: the loss is NaN or infinite; the graph then has the last
            state that was kept.
    """
    chosen = replace(options or Options(), **_known(changes))
    batches = Batches(data, graph, batch_size=chosen.batch_size, seed=chosen.seed)
    with (
        processes.joined(), _as_it_was(graph), _attached(graph, compress, batches),
        devices.moved(graph, compress, chosen.device), channels_last(graph),
    ):  # fmt: skip
        loop = _Loop(
            graph, batches, loss_of(loss, label_smoothing=chosen.label_smoothing), list(compress), evaluate, chosen
        )
        loop.run(Checkpoint(checkpoint, task_of(graph, chosen, len(batches))))
    return loop.report


@contextmanager
def _attached(graph: Graph, compress: Sequence[Compression], batches: Batches) -> Iterator[None]:
    """Inside, what compressions insert is there; afterwards a plain graph, whatever happened. Nothing is known then of constants
    that are not what they were."""
    with ExitStack() as stack:
        for each in compress:
            stack.callback(each.finish, graph)
            each.sees(Inputs(batches))
            each.attach(graph)
        before = {name: t.detach().clone() for name, t in graph.state_dict().items()}
        processes.from_first(list(graph.state_dict().values()))
        try:
            yield
        finally:
            _forget(graph, before)


def _forget(graph: Graph, before: dict[str, Tensor]) -> None:
    """What was known of constants that training changed holds no longer."""
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        name = str(node.target)
        if name not in before or not torch.equal(before[name], graph.parameter(node)):
            graph.changed_in_place(node)


def _known(changes: dict[str, Any]) -> dict[str, Any]:
    known = Options.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}; known: {', '.join(known)}")
    return changes


@contextmanager
def _as_it_was(graph: Graph) -> Iterator[None]:
    """Inside, gradients are recorded; afterwards the mode of the graph and the caller's random numbers are what they were."""
    training = graph.training
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        graph.train(training)


@dataclass
class _Loop:
    """One training: what is learned, and how far it is."""

    graph: Graph
    batches: Batches
    loss: Loss
    compress: list[Compression]
    evaluate: Evaluate | None
    options: Options
    report: TrainingReport = field(default_factory=TrainingReport)

    def __post_init__(self) -> None:
        chosen = self.options
        parts = groups(self.graph, chosen.peak, chosen.decay, chosen.scale_rate)
        self.helpers = [module for each in self.compress for module in each.helpers()]
        parts += helper_groups(self.helpers, chosen.peak, chosen.decay)
        self.learned = [p for part in parts for p in part["params"]]
        self.optimizer = optimizer_of(chosen.optimizer, parts)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.factor = schedule_of(chosen.schedule, chosen.warmup)
        self.average = None if chosen.average is None else Average(self.learned, chosen.average)
        self.random: Tensor | None = None  # in front of a batch that is at work
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf
        self.epoch, self.done, self.sum = (
            0,
            0,
            0.0,
        )  # the epoch, batches of it that are done, and the sum of their losses

    @property
    def total(self) -> int:
        """Batches of the whole training."""
        return self.options.epochs * len(self.batches)

    def run(self, checkpoint: Checkpoint) -> None:
        if (kept := checkpoint.read()) is not None:
            self.load_state(kept)
        else:
            self.judge(0, None, 0.0)
        with progress("training", self.total) as advance:
            for _ in range(self.epoch * len(self.batches) + self.done):
                advance()
            try:
                while self.epoch < self.options.epochs:
                    self.one_epoch(checkpoint, advance, kept.get("random") if kept else None)
                    kept = None
            except KeyboardInterrupt:
                checkpoint.write(self.state())
                raise
            finally:
                self.put_back()
        checkpoint.remove()

    def one_epoch(self, checkpoint: Checkpoint, advance: Callable[[], None], random: Tensor | None) -> None:
        """The batches of an epoch that are not done yet; `random`: the state of random numbers behind those that are."""
        begin = saved = time.perf_counter()
        watched = list(dict.fromkeys(n for each in self.compress for n in each.watched(self.graph)))
        forward = Forward(self.graph, self.learned, watched, self.options.precision)
        skip = self.done
        for number, batch in enumerate(self.batches.epoch(self.epoch)):
            if number < skip:
                continue
            if number == skip and random is not None:
                torch.set_rng_state(random)
            self.random = torch.get_rng_state()
            self.sum += self.one_batch(forward, batch)
            self.done, self.random = number + 1, None
            advance()
            if time.perf_counter() - saved > self.options.save_every:
                checkpoint.write(self.state())
                saved = time.perf_counter()
        self.judge(self.epoch + 1, self.sum / max(1, self.done), time.perf_counter() - begin)
        self.epoch, self.done, self.sum = self.epoch + 1, 0, 0.0  # not before: an interrupted evaluation is made again
        checkpoint.write(self.state())

    def one_batch(self, forward: Forward, batch: Batch) -> float:
        """Gradients of one batch, and a step where enough are gathered; the loss."""
        place = self.epoch * len(self.batches) + self.done
        batch = devices.placed(batch, self.options.device)
        for each in self.compress:
            each.step(place / self.total)
            batch = each.batch(batch)
        loss = self.whole_loss(forward(batch))
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"the loss is {float(loss.detach())} at step {self.report.steps + 1} (epoch {self.epoch + 1}, batch "
                f"{self.done + 1}); the graph has the last state that was kept; try a lower rate, or clip=1.0"
            )
        torch.autograd.backward(loss / self.options.accumulate)
        if (place + 1) % self.options.accumulate == 0 or self.done + 1 == len(self.batches):
            self.one_step((place + 1) / self.total)
        return float(loss.detach())

    def whole_loss(self, run: Run) -> Tensor:
        """Of the task, where there are targets, and of what compressions add."""
        run.task = lambda outputs: self.loss(outputs, run.batch.targets)
        further = [found for each in self.compress if (found := each.loss(run)) is not None]
        if run.batch.targets is None and further:
            return torch.stack(further).sum()
        return torch.stack([run.task(run.outputs), *further]).sum()

    def one_step(self, place: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(place)
        processes.average(self.learned)
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.learned, self.options.clip)
        for each in self.compress:
            each.update(self.factor(place))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.report.steps += 1
        if self.average is not None:
            self.average.update()

    # ---- What is kept -----------------------------------------------------------------------------------------------

    def judge(self, epoch: int, loss: float | None, seconds: float) -> None:
        """Evaluate, with the average where there is one, and keep the state if it is the best."""
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            for each in self.compress if epoch else ():
                each.settle(self.graph)
            processes.from_first([t for _, t in self.graph.named_buffers()])  # running statistics are each one's own
            score = None if self.evaluate is None else self.score(self.evaluate)
            if score is None or score > self.best_score or not self.best:
                self.best_score = -math.inf if score is None else score
                self.best = {name: t.detach().clone() for name, t in self.graph.state_dict().items()}
                self.report.kept = epoch
        self.report.epochs.append(Epoch(epoch, loss, score, seconds))

    def score(self, evaluate: Evaluate) -> float:
        """Of the first process, which the others are told."""
        with self.graph.evaluating(), torch.no_grad():
            score = processes.told(float(evaluate(self.graph)) if processes.is_first() else 0.0)
        if not math.isfinite(score):
            raise InputError(f"evaluate returned {score}; it must be a finite number")
        return score

    @torch.no_grad()
    def put_back(self) -> None:
        """Let the graph have the best state."""
        for name, value in self.graph.state_dict().items():
            value.copy_(self.best[name])

    def state(self) -> dict[str, Any]:
        """All that a training which goes on needs."""
        return {
            "graph": self.graph.state_dict(),
            "helpers": [module.state_dict() for module in self.helpers],
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else {"values": self.average.values, "steps": self.average.steps},
            "best": self.best,
            "best_score": self.best_score,
            "place": [self.epoch, self.done, self.sum],
            "random": torch.get_rng_state() if self.random is None else self.random,
            "report": {**self.report.to_dict(), "notes": list(self.report.notes)},
            "gradients": [None if p.grad is None else p.grad for p in self.learned],
        }

    @torch.no_grad()
    def load_state(self, kept: dict[str, Any]) -> None:
        for name, value in self.graph.state_dict().items():
            value.copy_(kept["graph"][name])
        load_helpers(self.helpers, kept["helpers"])
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.average is not None:
            self.average.load(kept["average"]["values"], kept["average"]["steps"])
        for parameter, gradient in zip(self.learned, kept["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.best, self.best_score = kept["best"], kept["best_score"]
        (self.epoch, self.done, self.sum), told = kept["place"], kept["report"]
        epochs = [Epoch(**epoch) for epoch in told["epochs"]]
        self.report = TrainingReport(epochs, told["kept"], told["steps"], told["notes"])
