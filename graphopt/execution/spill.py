"""Keep tensors in memory up to a limit, and in temporary files beyond it.

    overflow = Overflow(limit=2**30)
    x = overflow.keep(x)      # the same tensor, or one with the same values whose storage is a file mapped into memory

A file has no name any more once it is open (on Windows: it is deleted when it is closed), so nothing is left behind, whatever
happens: it is gone when its tensor is.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from graphopt.utils.errors import InputError


class Overflow:
    """Attributes:
    limit: bytes of kept tensors in memory at a time.
    folder: where the files are; None: the system's folder for temporary files.
    inside, outside: bytes kept in memory and in files now.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.inside = self.outside = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values, kept until the result is let go of; nobody may write into the tensor meanwhile.

        Raises:
            InputError: there is no space for the file.
        """
        size = tensor.numel() * tensor.element_size()
        if self.inside + size <= self.limit or not size:
            whole = tensor.untyped_storage().nbytes() == size
            kept = tensor.detach() if whole else tensor.detach().clone()  # a part would hold the whole
            self.inside += size
            weakref.finalize(kept, self._leave, size, 0)
            return kept
        with tempfile.TemporaryFile(dir=self.folder) as file:
            _reserve(file.fileno(), size, self.folder)
            mapped = mmap.mmap(file.fileno(), size)
        kept = torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)
        kept.copy_(tensor)
        if hasattr(mapped, "madvise"):
            mapped.madvise(
                mmap.MADV_DONTNEED
            )  # what was written is in the file, and need not be in memory until it is read
        self.outside += size
        weakref.finalize(kept, self._leave, 0, size)
        return kept

    def _leave(self, inside: int, outside: int) -> None:
        self.inside -= inside
        self.outside -= outside


def _reserve(file: int, size: int, folder: Path | None) -> None:
    """Make a file that large. A write through memory to a file that a full disk cannot hold would end the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise InputError(
            f"cannot keep {size} bytes of values in {folder or tempfile.gettempdir()}: {error.strerror}; free some space, choose "
            "another folder for temporary files (TMPDIR), or give fewer samples"
        ) from error
