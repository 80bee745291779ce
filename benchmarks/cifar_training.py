"""Training on 10,000 images of CIFAR-10 under a budget of CPU time: images, epochs that fit, and judges of every epoch.

9,000 images are trained on, flipped and shifted; 1,000 are held out. The networks that are compressed, and the teacher, were
trained on all of them before, so they know the held-out images better than images that they never saw. Besides the accuracy on
them, every epoch is therefore judged on mixtures of two of them, which nobody saw: by the divergence from the teacher's answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, HELD_OUT, CALIBRATION, TEMPERATURE = 128, 1000, 512, 4.0
KEPT_BY = "mixed, teacher, divergence"  # less is better
SOME = 4000  # of the test images, to follow a training with
Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def accuracy(model: Model, x: Tensor, y: Tensor) -> float:
    return 100 * float((answers(model, x).argmax(1) == y).double().mean())


def answers(model: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in x.split(250)])


class Augmented:
    """Batches of images, flipped and shifted by up to four pixels, in another order every epoch.

    Attributes:
        whole: of what it is the first batches.
        seconds: CPU time that was spent between batches, one by one: what the steps of a training took.
    """

    def __init__(self, x: Tensor, y: Tensor, whole: Augmented | None = None) -> None:
        self.x, self.y, self.whole, self.seconds = x, y, whole, list[float]()

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.randperm(len(self.x)).split(BATCH):
            began = time.process_time()
            yield self.moved(self.x[places]), self.y[places]
            self.seconds.append(time.process_time() - began)

    @property
    def minutes(self) -> float:
        return sum(self.seconds) / 60

    def first(self, count: int) -> Augmented:
        """So many batches of it."""
        return Augmented(self.x[: count * BATCH], self.y[: count * BATCH], self)

    @staticmethod
    def moved(x: Tensor) -> Tensor:
        n, channels, size, _ = x.shape
        padded, line = F.pad(x, (4, 4, 4, 4)), torch.arange(size)
        down, right = torch.randint(0, 9, (2, n))
        columns = torch.where((torch.rand(n) < 0.5)[:, None], size - 1 - line, line) + right[:, None]
        rows = down[:, None] + line
        return padded[
            torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows[:, None, :, None],
            columns[:, None, None, :],
        ]  # fmt: skip


class Cifar:
    """Images to train on, to choose the epoch by, and to test on; the networks."""

    def __init__(self) -> None:
        self.zoo = common.data()
        x, y = self.zoo.cifar10("train10k")
        self.x, self.y = x[:-HELD_OUT], y[:-HELD_OUT]
        self.calibration = x[:CALIBRATION]
        self.held_out = x[-HELD_OUT:], y[-HELD_OUT:]
        self.test = self.zoo.cifar10("test")
        self.original, self.teacher = self.zoo.cifar_resnet(20), self.zoo.cifar_resnet(56)

    @property
    def train(self) -> Augmented:
        return Augmented(self.x, self.y)


def affordable(minutes: float, train: Augmented) -> int:
    """Epochs whose steps fit into a budget, from those of a training on some of the batches; evaluations are not counted."""
    return max(1, round(minutes * 60 / (statistics.median(train.seconds) * len(train.whole or train))))


class Judge:
    """How far answers to mixtures of held-out images are from the teacher's, which decides what is kept; beside it, figures that
    might, and the accuracy on test images, which decide nothing: all of them before the training and behind it, the first 4,000
    in between.

    Attributes:
        found: for each call, figures by name.
    """

    def __init__(self, cifar: Cifar, epochs: int) -> None:
        self.cifar, self.calls, self.found = cifar, epochs + 1, list[dict[str, float]]()
        x, _ = cifar.held_out
        other, half = x.flip(0), x.shape[-1] // 2
        self.views = {
            "plain": x,
            "mixed": (x + other) / 2,
            "halves": torch.cat([x[..., :half], other[..., half:]], -1),
        }
        networks = {"teacher": cifar.teacher, "original": cifar.original}
        self.wanted = {
            (view, name): answers(network, images).log_softmax(1)
            for view, images in self.views.items()
            for name, network in networks.items()
        }

    def __call__(self, model: Model) -> float:
        own = {view: answers(model, images).log_softmax(1) for view, images in self.views.items()}
        figures = self.tested(model) | {
            "held out": 100 * float((own["plain"].argmax(1) == self.cifar.held_out[1]).double().mean()),
            "held out, cross entropy": float(F.nll_loss(own["plain"], self.cifar.held_out[1])),
        }
        for (view, name), log_p in self.wanted.items():
            divergence = F.kl_div(own[view], log_p, log_target=True, reduction="batchmean")
            figures[f"{view}, {name}, divergence"] = float(divergence)
        y = self.cifar.held_out[1]
        for view in ("mixed", "halves"):
            losses = [float(F.nll_loss(own[view], each)) for each in (y, y.flip(0))]
            figures[f"{view}, labels, cross entropy"] = sum(losses) / 2
        self.found.append(figures)
        return -figures[KEPT_BY]

    def tested(self, model: Model) -> dict[str, float]:
        x, y = self.cifar.test
        first = x[:SOME], y[:SOME]
        if len(self.found) not in (0, self.calls - 1):
            return {"test, some": accuracy(model, *first)}
        right = answers(model, x).argmax(1) == y
        return {"test, some": 100 * float(right[:SOME].double().mean()), "test": 100 * float(right.double().mean())}

    def row(self, model: Model) -> dict[str, Any]:
        """Of a training that was judged before and after each epoch, and has left the model with the best state."""
        best = min(range(len(self.found)), key=lambda at: (self.found[at][KEPT_BY], at))
        return {
            "before": self.found[0]["test"],
            "last": self.found[-1]["test"],
            "test": self.found[best].get("test") or accuracy(model, *self.cifar.test),
            "epochs": len(self.found) - 1,
            "kept": best,
            "judged": self.found,
        }


def plain_loop(model: nn.Module, loss: Loss, batches: Augmented, epochs: int, rate: float, judge: Judge | None) -> None:
    """AdamW with a cosine, of plain PyTorch; the best state by the held-out images, where there is a judge.

    Args:
        loss: of inputs, logits and targets.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    best, most = model.state_dict(), -1.0
    for epoch in range(epochs + 1):
        if judge is not None and (score := judge(model.eval())) > most:
            best, most = {name: t.detach().clone() for name, t in model.state_dict().items()}, score
        model.train()
        for x, y in batches if epoch < epochs else ():
            optimizer.zero_grad()
            loss(x, model(x), y).backward()
            optimizer.step()
            schedule.step()
    if judge is not None:
        model.load_state_dict(best)
