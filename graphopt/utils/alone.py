"""What touches the state of the whole process, kept to one thread at a time and put back afterwards.

with ALONE:          torch.export and torch.onnx.export patch torch while they run, so two threads would meet in them
with undisturbed():  random numbers drawn inside do not move those of the caller
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ALONE = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """The generators of torch (on the CPU), NumPy and Python afterwards are as they were before."""
    ours, theirs = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(ours)
        random.setstate(theirs)
