"""Run samples of operators through a backend, and say which of them answer something else than torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.utils._pytree as pytree
from operator_samples import Sample
from operators import OPERATORS, Calls, inputs_of
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.ir.graph import Graph

Lower = Callable[[Graph], Artifact]
Refused = dict[str, dict[int, str]]  # kind -> number of a sample -> a word of the refusal


def spread(samples: list[Sample], count: int = 3) -> list[Sample]:
    """About as many, taken evenly."""
    return samples[:: max(len(samples) // count, 1)]


def taken(kind: str, refused: Refused) -> list[Sample]:
    """The samples of a kind that a backend takes."""
    return [sample for n, sample in enumerate(OPERATORS[kind]) if n not in refused.get(kind, {})]


def refusals(refused: Refused) -> list[tuple[Sample, str]]:
    """The samples that a backend does not take, with a word of the message."""
    return [(OPERATORS[kind][n], word) for kind, numbers in refused.items() for n, word in numbers.items()]


def captured(samples: list[Sample]) -> Graph:
    return Graph.capture(Calls(samples).eval(), inputs_of(samples), dynamic_batch=False)


def wrong(samples: list[Sample], lower: Lower, tolerance: float = 2e-5) -> list[str]:
    """The samples that answer wrongly, all lowered as one model; what is wrong with each."""
    inputs = inputs_of(samples)
    with torch.no_grad():
        answers, expected = lower(captured(samples))(*inputs), Calls(samples).eval()(*inputs)
    found = []
    for sample, ours, theirs in zip(samples, answers, expected, strict=True):
        leaves = zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
        differences = [d for n, (a, b) in enumerate(leaves) if (d := _difference(a, b, tolerance, n))]
        if differences:
            found.append(f"{sample}: {'; '.join(differences)}")
    return found


def _difference(ours: Tensor, theirs: Tensor, tolerance: float, number: int) -> str:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return f"result {number} is {ours.dtype}{list(ours.shape)}, not {theirs.dtype}{list(theirs.shape)}"
    if not theirs.is_floating_point():
        count = int((ours != theirs).sum())
        return f"result {number} has {count} other values" if count else ""
    close = torch.isclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    return "" if bool(close.all()) else f"result {number} moved by {float((ours - theirs).abs().max()):.2e}"
