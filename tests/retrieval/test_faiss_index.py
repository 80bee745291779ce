"""Codes through faiss, where it is installed: what `HammingIndex` finds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from graphopt.retrieval import FaissIndex, HammingIndex
from graphopt.utils.errors import InputError

CODES = np.random.default_rng(0).integers(0, 256, (500, 16), dtype=np.uint8)


def test_it_finds_the_same_distances() -> None:
    pytest.importorskip("faiss")
    index = FaissIndex(CODES)
    distances, places = index.search(CODES[:20], 9)
    wanted, _ = HammingIndex(CODES).search(CODES[:20], 9)
    assert len(index) == 500
    assert (distances == wanted).all()
    assert (np.bitwise_count(CODES[places] ^ CODES[:20, None]).sum(2) == distances).all()


def test_lists_are_trained_and_find_most() -> None:
    pytest.importorskip("faiss")
    index = FaissIndex(CODES, "BIVF4")
    _, places = index.search(CODES[:20], 1)
    assert (places[:, 0] == np.arange(20)).all()  # a code is in its own list


def test_it_says_what_it_takes() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(InputError, match="no binary index 'Flat17'"):
        FaissIndex(CODES, "Flat17")
    with pytest.raises(InputError, match="queries have 3 bytes, the codes have 16"):
        FaissIndex(CODES).search(CODES[:2, :3], 1)
    with pytest.raises(InputError, match="uint8"):
        FaissIndex(CODES.astype(np.float32))


def test_without_faiss_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'graphopt\[faiss\]'"):
        FaissIndex(CODES)
