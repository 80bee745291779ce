"""The smallest network, as far as small changes lead, that fails as a given one does.

    small = shrink(network, fails)          fails(network) -> a word for the failure, or None

Steps are dropped, replaced by a value they read or by an input of their own; keywords are dropped, numbers and sizes made
smaller. A change is kept where the word stays the same.
"""

from __future__ import annotations

import ast
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.utils._pytree as pytree
from programs import Network, pruned, reads
from torch import Tensor

Fails = Callable[[Network], "str | None"]


def shrink(network: Network, fails: Fails, seconds: float = 120.0) -> Network:
    """At most for so long."""
    wanted, end = fails(network), time.monotonic() + seconds
    if wanted is None:
        raise ValueError("the network does not fail, so there is nothing to shrink")
    found = True
    while found:
        found = False
        for smaller in _smaller(network):
            if time.monotonic() > end:
                return network
            if _builds(smaller) and fails(smaller) == wanted:
                network, found = smaller, True
                break
    return network


def kind_of(message: str) -> str:
    """A message without its names and numbers, so that those of shrunken networks compare equal."""
    return re.sub(r"['\"(\[{].*|\b\w*\d[\w.+-]*", "", message)[:60].strip()


def _builds(network: Network) -> bool:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model, inputs = network.build()
            answer = pytree.tree_leaves(model(*inputs))
    except Exception:
        return False
    return all(isinstance(t, Tensor) for t in answer) and all(
        bool(torch.isfinite(t).all()) for t in answer if t.is_floating_point()
    )


def _smaller(network: Network) -> Iterator[Network]:
    """Neighbours, those with the largest savings first."""
    seen = {network.text()}
    for found in (*_cut(network), *_without(network), *_simpler(network)):
        smaller = pruned(found)
        if (text := smaller.text()) not in seen:
            seen.add(text)
            yield smaller


def _cut(network: Network) -> Iterator[Network]:
    """One value is the result; or a value becomes an input."""
    for name in network.steps:
        if network.returned != name:
            yield replace(network, returned=name)
    values = _values(network)
    for name in reversed(network.steps):
        value = values.get(name)
        if isinstance(value, Tensor) and name in reads(" + ".join(["0", *network.steps.values()])):
            made = (
                f"torch.randn{_shape(value)}" if value.is_floating_point() else f"torch.randint(0, 4, {_shape(value)})"
            )
            steps = {n: e for n, e in network.steps.items() if n != name}
            yield replace(network, inputs={**network.inputs, name: made}, steps=steps)


def _without(network: Network) -> Iterator[Network]:
    """A step's readers read what it read; or a result of several is one less."""
    for name, expression in reversed(network.steps.items()):
        for other in sorted(reads(expression) & {*network.steps, *network.inputs}):
            steps = {n: _renamed(e, name, other) for n, e in network.steps.items() if n != name}
            yield replace(network, steps=steps, returned=_renamed(network.returned, name, other))
    names = sorted(reads(network.returned))
    for name in names if len(names) > 1 else ():
        yield replace(network, returned=f"({', '.join(n for n in names if n != name)},)")


def _simpler(network: Network) -> Iterator[Network]:
    """Expressions with one keyword less, or one number smaller."""
    for field in ("parts", "steps", "inputs"):
        lines = getattr(network, field)
        for name, expression in lines.items():
            for other in _expressions(expression):
                yield replace(network, **{field: {**lines, name: other}})


def _expressions(expression: str) -> Iterator[str]:
    calls = [n for n in ast.walk(ast.parse(expression)) if isinstance(n, ast.Call)]
    for number, call in enumerate(calls):
        for keyword in range(len(call.keywords)):
            tree = ast.parse(expression)
            del [n for n in ast.walk(tree) if isinstance(n, ast.Call)][number].keywords[keyword]
            yield ast.unparse(tree)
    numbers = [n for n in ast.walk(ast.parse(expression)) if _is_count(n)]
    for number, constant in enumerate(numbers):
        assert isinstance(constant, ast.Constant)
        for less in sorted({1, 2, constant.value // 2, constant.value - 1} - {0}):  # type: ignore[operator]
            if less < constant.value:  # type: ignore[operator]
                tree = ast.parse(expression)
                other = [n for n in ast.walk(tree) if _is_count(n)][number]
                assert isinstance(other, ast.Constant)
                other.value = less
                yield ast.unparse(tree)


def _is_count(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1


def _renamed(expression: str, name: str, other: str) -> str:
    return re.sub(rf"\b{name}\b", other, expression)


def _shape(value: Tensor) -> str:
    return f"({', '.join(map(str, value.shape))},)" if value.dim() else "(())"


def _values(network: Network) -> dict[str, object]:
    """Of every step, on the example."""
    from programs import Noisy

    record = replace(network, returned=f"{{{', '.join(f'{n!r}: {n}' for n in network.steps)}}}")
    model, inputs = record.build()
    return dict(Noisy(0.0)(record, model, inputs))
