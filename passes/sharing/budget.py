"""How many values each layer has, for a size: of the choices that keep it the one that changes the output least.

Each layer comes in several tables; of each are known its bytes (the entropy of the codes, and the table) and its damage at the
output on data, alone: of a few of them measured, of those between from the error of the weights (`power_law`).
`graphopt.searching` takes one for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from graphopt.analysis.output_error import Probe, power_law
from graphopt.fitting.priced import entropy
from graphopt.formats import Codebook, Quantizer
from graphopt.ir.graph import Graph
from graphopt.passes.sharing.sites import Site
from graphopt.searching import Choice, Option, Problem, Term, solve
from graphopt.utils.progress import track

MARGIN = 0.97  # of the size: values chosen on data vary a little more than the nearest
MEASURED = 4  # tables of a layer
FRAME = 16  # bytes of a piece beside its codes and its table


def quantizer_of_table(table: Tensor) -> Quantizer:
    """What rounds to a table of 2^bits entries."""
    return Quantizer(Codebook((len(table) - 1).bit_length()), (table,))


def size_of(weight: Tensor, table: Tensor) -> float:
    """Bytes of a weight that shares these values, by the entropy of its codes."""
    codes = quantizer_of_table(table).quantize(weight)
    entries: int = len(torch.unique(codes))
    return entropy(codes) / 8 + 4 * entries + FRAME


def spend(
    graph: Graph,
    data: Iterable[list[Tensor]],
    found: Sequence[Site],
    sizes: Sequence[int | float],
    table_of: Callable[[Site, int | float], Tensor],
    most: float,
) -> list[int | float]:
    """Of `sizes`, from large to small, one for each site.

    Args:
        table_of: the table of a site at one of the sizes.
        most: bytes of all weights.

    Raises:
        InputError: the smallest take more.
    """
    probe = Probe(graph, data)
    choices, costs = [], []
    for site in track(found, "sizes of layers"):
        weight, tables = graph.tensor(site.weight), [table_of(site, size) for size in sizes]
        damages = _damages(probe, site.name, weight, tables)
        options = [Option(f"{size:g}", damage, size) for size, damage in zip(sizes, damages, strict=True)]
        choices.append(Choice(site.name, "values", tuple(options)))
        costs.append([size_of(weight, table) for table in tables])
    terms = [Term((number,), partial(_at, each)) for number, each in enumerate(costs)]
    chosen = solve(Problem(choices, {"bytes": terms}, {"bytes": MARGIN * most}))
    return [choice.options[option].value for choice, option in zip(choices, chosen, strict=True)]


def _damages(probe: Probe, name: str, weight: Tensor, tables: Sequence[Tensor]) -> list[float]:
    """At the output, of a weight rounded to each of the tables."""
    rounded = [quantizer_of_table(table)(weight) for table in tables]
    errors = [float((each - weight).double().square().sum()) for each in rounded]
    measured = np.linspace(0, len(tables) - 1, min(len(tables), MEASURED)).round().astype(int)
    points = [(errors[n], probe.damage(changed={name: rounded[n]})) for n in measured]
    return [float(damage) for damage in power_law(points, np.array(errors))]


def _at(costs: Sequence[float], options: tuple[int, ...]) -> float:
    return costs[options[0]]
