"""Tensors in memory, and in files beyond a limit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from graphopt.execution.spill import Overflow
from graphopt.utils.errors import InputError


def test_overflow_counts_what_it_keeps_and_lets_go(tmp_path: Path) -> None:
    overflow = Overflow(100, tmp_path)
    x, y = torch.arange(20.0), torch.arange(30.0).reshape(5, 6)
    first, second = overflow.keep(x), overflow.keep(y)
    assert torch.equal(first, x)
    assert torch.equal(second, y)
    assert (overflow.inside, overflow.outside) == (80, 120)
    del first, second
    assert (overflow.inside, overflow.outside) == (0, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no space for files")
def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"cannot keep 80 bytes of values in .*: No space left on device; free some space"
    ):
        Overflow(0, tmp_path).keep(torch.arange(20.0))
