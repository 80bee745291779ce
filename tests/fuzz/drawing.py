"""What random networks are drawn with: the values so far, and random choices among them.

For each kind of call (`kinds.py`) a function writes one with random arguments, or answers None where no value fits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from programs import seed
from rewriting import randomised
from torch import Tensor, nn

Kind = Callable[["Draw"], "str | None"]


class Draw:
    """The values so far, and random choices among them.

    Attributes:
        values: tensors by name; hidden: tuples, which only their elements are read from.
        parts: what makes each module.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, Tensor] = {}
        self.hidden: dict[str, Any] = {}
        self.parts: dict[str, str] = {}
        self.modules = SimpleNamespace()

    def run(self, expression: str, values: dict[str, Any]) -> Any:
        return eval(expression, {"torch": torch, "F": F, "nn": nn, "self": self.modules}, self.hidden | values)

    def made(self, name: str, expression: str) -> Any:
        """With the numbers that the network's text draws."""
        with torch.random.fork_rng(devices=[]):
            exec(seed(name), {"torch": torch})
            return eval(expression, {"torch": torch, "nn": nn})

    def part(self, expression: str) -> str:
        name = f"p{len(self.parts)}"
        with torch.random.fork_rng(devices=[]):
            exec(seed(name), {"torch": torch})
            module = randomised(eval(expression, {"nn": nn})).eval()
        setattr(self.modules, name, module)
        self.parts[name] = expression
        return f"self.{name}"

    def restore(self, parts: dict[str, str]) -> None:
        """Forget modules that were made for nothing."""
        self.parts = dict(parts)

    def pick(self, *ranks: int, floating: bool = True) -> str | None:
        """The name of a tensor, rather a late one, of one of these ranks (any if none is given)."""
        fits = [
            name
            for name, x in self.values.items()
            if x.is_floating_point() == floating and (not ranks or x.dim() in ranks)
        ]
        if not fits:
            return None
        return fits[-1] if self.rng.random() < 0.7 else self.rng.choice(fits)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def of(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def sizes(self, count: int, *options: int) -> Any:
        """One number for all dimensions, or one for each."""
        return self.of(*options) if self.rng.random() < 0.6 else tuple(self.of(*options) for _ in range(count))


def written(**options: Any) -> str:
    return "".join(f", {name}={value!r}" for name, value in options.items())


def other(d: Draw, x: str) -> str | None:
    """A value that x can be broadcast with, not always of x's rank; now and then a number or a slice of x."""

    def fits(shape: tuple[int, ...]) -> bool:
        return all(a == b or 1 in (a, b) for a, b in zip(reversed(shape), reversed(d.shape(x)), strict=False))

    found = [name for name, value in d.values.items() if value.is_floating_point() and fits(tuple(value.shape))]
    return d.of(*found, *found, f"{x}.mean(-1, keepdim=True)", f"{x}[:1]", d.of("0.5", "2", "-1.5"))  # type: ignore[no-any-return]
