"""What checks share: their outcomes, the graph of a network, and how answers are compared with torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from programs import Built, Network, Noisy
from refusals import unclear
from torch import Tensor

from graphopt.ir.graph import Graph
from graphopt.utils.errors import GraphoptError, PassError

TOLERANCE = 1e-4  # of the largest value of an output
NOISE = 1e-6  # of every value; an answer that it moves by a third of the tolerance says nothing


@dataclass(frozen=True)
class Outcome:
    """kind: `wrong` (other numbers), `foreign` (an exception not ours), `unclear` (a refusal that helps nobody), `refused`,
    or `warning` (right, and far from the float model).
    """

    check: str
    kind: str
    message: str

    @property
    def bad(self) -> bool:
        return self.kind in ("wrong", "foreign", "unclear")


class WrongError(Exception):
    """Other numbers than torch's."""


class WarningError(Exception):
    """Worth a line in the report."""


Check = Callable[[Network], "Outcome | None"]


def checked(name: str, body: Callable[[Network, Built], object]) -> Check:
    """A check of a body that raises where something is wrong."""

    def check(network: Network) -> Outcome | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body(network, network.build())
        except SkippedError:
            return None
        except WrongError as error:
            return Outcome(name, "wrong", str(error))
        except WarningError as error:
            return Outcome(name, "warning", str(error))
        except PassError as error:
            return Outcome(name, "wrong", str(error))
        except GraphoptError as error:
            why = unclear(str(error), network)
            return Outcome(name, "unclear" if why else "refused", f"{why}: {error}" if why else str(error))
        except Exception as error:
            return Outcome(name, "foreign", f"{type(error).__name__}: {error}")
        return None

    return check


class SkippedError(Exception):
    """There is nothing to check."""


def graph_of(network: Network, built: Built) -> Graph:
    """A copy of the graph, which is captured once for all checks of a network; that takes as long as most of them."""
    key = (network.text(), network.free_batch)
    if key not in _captured:
        _captured.clear()
        try:
            _captured[key] = Graph.capture(built.model, built.inputs, dynamic_batch=network.free_batch)
        except Exception:
            _captured[key] = None
    graph = _captured[key]
    if graph is None:
        raise SkippedError
    return graph.clone()


_captured: dict[tuple[str, bool], Graph | None] = {}


def answers(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return pytree.tree_map_only(Tensor, torch.Tensor.detach, function(*inputs))


def compare(network: Network, built: Built, found: Any, inputs: tuple[Tensor, ...], what: str) -> None:
    """Raise where an answer is not torch's, and rounding cannot be why."""
    expected = answers(built.model, inputs)
    if difference := differs(found, expected):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noisy = [Noisy(NOISE, seed)(network, built.model, inputs) for seed in range(3)]
        if not any(differs(moved, expected, TOLERANCE / 3) for moved in noisy):
            raise WrongError(f"{what}: {difference}")


def differs(found: Any, expected: Any, tolerance: float = TOLERANCE) -> str:
    """How two answers differ in nesting, types, sizes or numbers; empty where they do not."""
    ours, nesting = pytree.tree_flatten(found)
    theirs, wanted = pytree.tree_flatten(expected)
    if nesting != wanted:
        return f"nested as {nesting}, not {wanted}"
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.dtype != other.dtype or one.shape != other.shape:
            return f"output {number} is {one.dtype}{list(one.shape)}, not {other.dtype}{list(other.shape)}"
        if not other.is_floating_point():
            if count := int((one != other).sum()):
                return f"output {number} has {count} other values"
            continue
        reach = float(other.abs().max()) if other.numel() else 0.0
        moved = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        if not moved <= tolerance * max(reach, 1e-6):
            return f"output {number} moved by {moved:.2e} of {reach:.2e}"
    return ""


def other_inputs(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Twice the batch, where it is free."""
    fakes = [node.meta["val"] for node in graph.placeholders]
    return tuple(
        torch.cat([x, x.flip(0)]) if fake.dim() and isinstance(fake.shape[0], torch.SymInt) else x
        for x, fake in zip(inputs, fakes, strict=True)
    )
