from collections import Counter

import pytest
import torch

from graphopt.demo.main import accuracy
from graphopt.demo.network import DigitNet
from graphopt.demo.train import load, shifted, train


def test_the_data_is_complete_and_split_once_and_for_all() -> None:
    digits = load()
    assert (len(digits.train_images), len(digits.test_images)) == (1198, 599)
    assert digits.train_images.shape[1:] == (1, 8, 8)
    images = torch.cat([digits.train_images, digits.test_images])
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert set(Counter(digits.test_labels.tolist())) == set(range(10))
    assert torch.equal(load().test_labels, digits.test_labels)


def test_shifting_moves_by_a_pixel_at_most() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4, 4] = 1
    for _ in range(20):
        moved = shifted(image).nonzero()
        assert len(moved) == 1
        assert ((moved[0] - torch.tensor([0, 0, 4, 4])).abs() <= 1).all()


@pytest.mark.thorough
def test_training_is_repeatable_and_keeps_the_random_state() -> None:
    digits = load()
    before = torch.get_rng_state()
    first, second = (train(digits, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert accuracy(digits)(first) > 0.5


@pytest.mark.slow
def test_the_trained_network_is_good() -> None:
    digits = load()
    assert accuracy(digits)(train(digits)) >= 0.98


def test_accuracy_counts_the_held_out_digits() -> None:
    digits = load()
    share = accuracy(digits)(lambda images: torch.eye(10)[torch.zeros(len(images), dtype=torch.int64)])
    assert share == pytest.approx(float((digits.test_labels == 0).float().mean()), abs=1e-6)
    assert sum(p.numel() for p in DigitNet().parameters()) < 300_000
