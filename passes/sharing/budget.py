"""How many values each layer has, for a size: of the choices that keep it the one that changes the output least.

Each layer comes in several tables; of each are known its bytes (the entropy of the codes, and the table) and its damage at the
output on data, alone. `graphopt.searching` takes one for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from graphopt.analysis.output_error import Probe
from graphopt.fitting.priced import entropy
from graphopt.formats import Codebook, Quantizer
from graphopt.ir.graph import Graph
from graphopt.passes.sharing.sites import Site
from graphopt.searching import Choice, Option, Problem, Term, solve
from graphopt.utils.progress import track

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
        weight, options, taken = graph.tensor(site.weight), [], []
        for size in sizes:
            table = table_of(site, size)
            rounded = quantizer_of_table(table)(weight)
            options.append(Option(f"{size:g}", probe.damage(changed={site.name: rounded}), size))
            taken.append(size_of(weight, table))
        choices.append(Choice(site.name, "values", tuple(options)))
        costs.append(taken)
    terms = [Term((number,), partial(_at, each)) for number, each in enumerate(costs)]
    chosen = solve(Problem(choices, {"bytes": terms}, {"bytes": most}))
    return [choice.options[option].value for choice, option in zip(choices, chosen, strict=True)]


def _at(costs: Sequence[float], options: tuple[int, ...]) -> float:
    return costs[options[0]]
