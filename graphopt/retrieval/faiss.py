"""Codes in an index of faiss (`pip install graphopt[faiss]`), which compares in machine code, and for more than brute force has
indices that leave most codes out: hand `FaissIndex` one of those."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.retrieval.selection import Found, check_k
from graphopt.utils.errors import InputError


class FaissIndex:
    """Codes to search in, through faiss.

    Args:
        codes: uint8 [N, bytes].
        description: of a binary index as `faiss.index_binary_factory` has them: `BFlat` compares with every code, `BIVF1024` with
            those of the nearest lists, `BHNSW32` along a graph.

    Raises:
        InputError: faiss is not installed, does not know the description, or codes are no matrix of bytes.
    """

    def __init__(self, codes: npt.ArrayLike, description: str = "BFlat") -> None:
        found = _bytes(codes)
        try:
            faiss: Any = importlib.import_module("faiss")
        except ImportError as error:
            raise InputError(f"faiss cannot be imported ({error}); pip install 'graphopt[faiss]'") from error
        try:
            self.index: Any = faiss.index_binary_factory(8 * found.shape[1], description)
        except RuntimeError as error:
            raise InputError(
                f"faiss knows no binary index {description!r}; for instance BFlat, BIVF64, BHNSW16"
            ) from error
        if not self.index.is_trained:
            self.index.train(found)
        self.index.add(found)
        self.width = found.shape[1]

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: npt.ArrayLike, k: int) -> Found:
        """As `HammingIndex.search`; which of equal distances come first is faiss's affair, and where an index leaves codes out
        and finds fewer than k, the last places are -1."""
        check_k(k, len(self))
        asked = _bytes(queries)
        if asked.shape[1] != self.width:
            raise InputError(f"queries have {asked.shape[1]} bytes, the codes have {self.width}")
        distances, places = self.index.search(asked, k)
        return distances, places


def _bytes(codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[Any] = np.ascontiguousarray(codes)
    if found.ndim != 2 or found.dtype != np.uint8 or not found.size:
        raise InputError(f"codes must be bytes, uint8 [N, bytes]; got {found.dtype} of shape {found.shape}")
    return found
