"""A call of an operator with its inputs, and inputs of every type.

Sizes are odd and differ from each other, and are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[..., Any]


class Sample(NamedTuple):
    """A call, and what it is called with."""

    call: Call
    inputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        """Where the call is written, and what is called."""
        inputs = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in self.inputs)
        code = getattr(self.call, "__code__", None)
        if code is None:
            return f"{getattr(self.call, '__name__', self.call)} on ({inputs})"
        names = " ".join(map(str, [*code.co_names, *(c for c in code.co_consts if not callable(c))]))
        return (
            f"{code.co_name} in line {code.co_firstlineno} of {Path(code.co_filename).name}, of {names}, on ({inputs})"
        )


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=_seed(shape)).to(dtype)


def positive(*shape: int) -> Tensor:
    return floats(*shape).abs() + 0.1


def integers(*shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=_seed(shape)).to(dtype)


def flags(*shape: int) -> Tensor:
    return floats(*shape) > 0


def _seed(shape: tuple[int, ...]) -> torch.Generator:
    return torch.Generator().manual_seed(sum(shape) + len(shape))


IMAGE = floats(2, 3, 7, 9)
PAIR = (floats(2, 3, 7, 9), floats(3, 1, 9))
WHOLE = (integers(2, 3, 5), integers(3, 1, dtype=torch.int32))
FLOAT16_FORMATS = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.2])


def each(calls: list[Call], *inputs: tuple[Tensor, ...]) -> list[Sample]:
    return [Sample(call, given) for call in calls for given in inputs]
