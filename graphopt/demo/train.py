"""Train the demo's network: seeded, on the CPU, in well under a minute."""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.demo.network import DigitNet
from graphopt.utils.progress import progress

EPOCHS = 12
BATCH = 32


class Digits(NamedTuple):
    """Images [N, 1, 8, 8] with values 0 to 1, and labels [N]; the held-out third never enters the training."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Digits:
    """The data that comes with graphopt (see SOURCE.txt), in a fixed split of two thirds and one third."""
    with (resources.files("graphopt.demo") / "digits.npz").open("rb") as file, np.load(file) as data:
        images = torch.from_numpy(data["images"]).float().unsqueeze(1) / 16
        labels = torch.from_numpy(data["labels"]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 3], order[len(order) // 3 :]
    return Digits(images[train], labels[train], images[test], labels[test])


def train(digits: Digits, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """A trained network in eval mode. The caller's random state and number of threads are left as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small gain little from more, and lose ten times where the cores are busy
    try:
        return _train(digits, epochs, seed)
    finally:
        torch.set_num_threads(threads)


def _train(digits: Digits, epochs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitNet()
        batches = -(-len(digits.train_images) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs * batches)
        with progress("training", epochs * batches) as advance:
            for _ in range(epochs):
                for picks in torch.split(torch.randperm(len(digits.train_images)), BATCH):
                    logits = model(shifted(digits.train_images[picks]))
                    optimizer.zero_grad()
                    F.cross_entropy(logits, digits.train_labels[picks]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    rate.step()
                    advance()
    return model.eval()


def shifted(images: Tensor) -> Tensor:
    """Every image moved by up to one pixel: handwriting is not centred to the pixel."""
    right, down = (int(v) for v in torch.randint(-1, 2, (2,)))
    padded = F.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 - down : 9 - down, 1 - right : 9 - right]
