"""Random networks: every step is drawn, run, and kept where torch takes it and rounding does not decide its answer.

    network = generate(7)          a seed alone makes the network again

Which operators there are, and with which arguments, is in `drawing.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from drawing import Draw
from kinds import KINDS, OF_IMAGES, WEIGHTS
from programs import Network, Noisy, pruned, reads
from torch import Tensor

TRIES = 12  # for each step
LARGEST = 3000  # elements of a value
REACH = 1e3  # of a value
NOISE, AMPLIFIED = 1e-6, 3e-5  # a step is kept where noise of the one moves its value by less than the other


def generate(seed: int, kinds: dict[str, Callable[[Draw], str | None]] | None = None) -> Network:
    """A network of a few steps, up to about twenty; `kinds` in place of all that `drawing.py` has."""
    rng = random.Random(seed)
    made = _Growing(rng, kinds or KINDS)
    for _ in range(rng.choice([2, 4, 6, 8, 12, 16])):
        made.grow()
    return made.finished()


class _Growing:
    def __init__(self, rng: random.Random, kinds: dict[str, Callable[[Draw], str | None]]) -> None:
        self.rng, self.kinds, self.noisy = rng, kinds, Noisy(NOISE)
        self.images = rng.random() < 0.5
        self.weights = [(OF_IMAGES if self.images else WEIGHTS).get(kind, 1.0) for kind in self.kinds]
        self.inputs: dict[str, str] = {}
        self.steps: dict[str, str] = {}
        self.draw = Draw(rng)
        self.shadows: dict[str, Any] = {}
        batch = rng.choice([1, 2, 2, 3])
        for number in range(rng.choice([1, 1, 1, 2, 2, 3])):
            self._input(f"x{number}", batch if number == 0 or rng.random() < 0.7 else None)

    def _input(self, name: str, batch: int | None) -> None:
        rng = self.rng
        rank = (
            rng.choice([1, 2, 2, 2, 2, 3, 1, 0]) if self.inputs else 3 if self.images else rng.choice([1, 2, 3, 3, 4])
        )
        sizes = [rng.choice([1, 2, 3, 4, 4, 6, 8]), *(rng.choice([5, 6, 7, 8, 9]) for _ in range(3))][:rank]
        shape = [*([] if batch is None else [batch]), *sizes] or [1]
        text = ", ".join(map(str, shape))
        whole = rng.random() < (0.15 if self.inputs else 0.05)
        self.inputs[name] = f"torch.randint(0, 9, ({text},))" if whole else f"torch.randn({text})"
        value = self.draw.made(name, self.inputs[name])
        self._keep(name, value, self.noisy.moved(value))

    def grow(self) -> None:
        """Add a step, or several where one answers several tensors."""
        for _ in range(TRIES):
            kind = self.rng.choices([*self.kinds], self.weights)[0]
            before = dict(self.draw.parts)
            name = f"v{len(self.steps)}"
            try:
                expression = self.kinds[kind](self.draw)
                if expression is not None and self._take(name, expression):
                    return
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError):
                pass  # these lines do not fit each other
            self.draw.restore(before)

    def _take(self, name: str, expression: str) -> bool:
        with torch.no_grad():
            value = self.draw.run(expression, self.draw.values)
            shadow = self.noisy.moved(self.draw.run(expression, self.draw.values | self.shadows))
        leaves = pytree.tree_leaves(value)
        if not leaves or len(leaves) > 6 or not all(isinstance(leaf, Tensor) for leaf in leaves):
            return False
        if not all(map(sound, leaves)) or not all(map(steady, leaves, pytree.tree_leaves(shadow))):
            return False
        self.steps[name] = expression
        if isinstance(value, Tensor):
            self._keep(name, value, shadow)
        else:
            self._take_apart(name, value, shadow)
        return True

    def _take_apart(self, name: str, value: Any, shadow: Any) -> None:
        self.draw.hidden[name], self.shadows[name] = value, shadow
        for number, (one, other) in enumerate(zip(value, shadow, strict=True)):
            if isinstance(one, Tensor):
                part = f"v{len(self.steps)}"
                self.steps[part] = f"{name}[{number}]"
                self._keep(part, one, other)

    def _keep(self, name: str, value: Any, shadow: Any) -> None:
        self.draw.values[name], self.shadows[name] = value, shadow

    def finished(self) -> Network:
        """What nothing reads is returned, and now and then something else; nested in one of several ways."""
        rng, names = self.rng, [*self.steps] or [*self.inputs]
        names = [n for n in names if n in self.draw.values]
        read = {name for expression in self.steps.values() for name in reads(expression)}
        last = names[-1]
        others = [n for n in names[:-1] if n not in read or rng.random() < 0.1][-3:]
        ways = ["{0}"] if not others else ["({0}, {1})", "[{0}, ({1},)]", "{{'y': {0}, 'more': [{1}]}}"]
        returned = rng.choice(ways).format(last, ", ".join(others))
        return pruned(Network(self.inputs, self.draw.parts, self.steps, returned, rng.random() < 0.8))


def sound(x: Tensor) -> bool:
    if not 0 < x.numel() <= LARGEST or x.dim() > 5 or x.is_complex():
        return False
    return not x.is_floating_point() or (bool(torch.isfinite(x).all()) and float(x.abs().max()) < REACH)


def steady(x: Tensor, moved: Tensor) -> bool:
    if x.shape != moved.shape:
        return False
    if not x.is_floating_point():
        return torch.equal(x, moved)
    return float((x - moved).abs().max()) <= AMPLIFIED * float(x.abs().max())
