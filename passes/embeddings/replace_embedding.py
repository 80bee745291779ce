"""Put something smaller in the place of embedding tables, which in small encoders are half of all weights.

    svd          E = A B + m            two thin tables
    blocks       E = A_k B_k + m        of tokens by frequency, frequent ones with larger ranks
    quotient     E[i] = Q[i // m] * R[i % m]
    hashed       E[i] = P[i, 1] S[h_1(i)] + P[i, 2] S[h_2(i)]
    product      E[i] = pieces from codebooks, one byte each
    characters   E[i] = a small convolutional network of the token's characters

    [ReplaceEmbedding("product", keep=1 / 8, data=texts)]

Each method takes as much as `keep` leaves it and is fitted to the rows of the table; with data, rows count by how often their
tokens occur. Files of this room have the maths. What is put in is trained like anything else, with
`graphopt.train(graph, data, compress=[Response(model)])`; codes and hashes stay.

Needs:  a table of floats that only embeddings read; one that an output layer shares is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import observe
from graphopt.ir.build import Build
from graphopt.ir.calls import operand, shape
from graphopt.ir.facts import EMBEDDING_PART
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.passes.embeddings.characters import Characters
from graphopt.passes.embeddings.compositional import Hashed, Quotient
from graphopt.passes.embeddings.low_rank import Blocks, LowRank
from graphopt.passes.embeddings.product import Product
from graphopt.passes.embeddings.replacement import Replacement, Wanted
from graphopt.utils.checks import check_share
from graphopt.utils.errors import InputError, alternatives
from graphopt.utils.progress import track

Method = Literal["svd", "blocks", "quotient", "hashed", "product", "characters"]
METHODS: Mapping[str, type[Replacement]] = MappingProxyType(
    {each.name: each for each in (LowRank, Blocks, Quotient, Hashed, Product, Characters)}
)
SMALLEST = 1000  # rows; smaller tables, such as those of positions, are left alone where they are not named


@dataclass(frozen=True)
class ReplaceEmbedding:
    """Replace embedding tables.

    Attributes:
        method: see the head of this file.
        keep: the share of a table's bytes that its replacement may take, over 0 and under 1.
        layers: a pattern of names of tables, or of the layers they belong to; None: all of at least 1,000 rows.
        data: batches of inputs, on which tokens are counted; needed for `blocks`.
        tokens: the text of each token, in the order of their ids; needed for `characters`.
        seed: of random starts.

    Raises:
        InputError: an option does not fit, a pattern matches no table, or a method cannot be so small.
    """

    exact: ClassVar[bool] = False

    method: Method = "svd"
    keep: float = 0.25
    layers: str | None = None
    data: Iterable[list[Tensor]] | None = field(default=None, repr=False)
    tokens: Sequence[str] | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; {alternatives(self.method, METHODS, 'methods')}")
        check_share("keep", self.keep)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        found = self.tables(graph)
        counts = self.counted(graph, found)
        return [self.replace(graph, table, counts.get(table)) for table in track(found, "replacing embeddings")]

    def tables(self, graph: Graph) -> list[Node]:
        """The constants that are replaced."""
        every = dict.fromkeys(operand(node) for node in graph.calls(aten.embedding.default))
        plain = [node for node in every if graph.is_constant(node) and not graph.fact(node, EMBEDDING_PART)]
        if self.layers is None:
            chosen = [node for node in plain if shape(node)[0] >= SMALLEST]
        else:
            chosen = [n for n in plain if any(fnmatchcase(name, self.layers) for name in _names(graph, n))]
            if not chosen and not any(graph.fact(node, EMBEDDING_PART) for node in every):
                known = ", ".join(str(node.target) for node in plain) or "none"
                raise InputError(f"the pattern {self.layers!r} matches no embedding table; there are: {known}")
        return [node for node in chosen if _alone(node) and graph.tensor(node).is_floating_point()]

    def counted(self, graph: Graph, tables: Sequence[Node]) -> dict[Node, Tensor]:
        """How often each token of the tables occurs in the data; nothing without data."""
        if self.data is None or not tables:
            return {}
        counts = {table: _Counts(int(shape(table)[0])) for table in tables}
        watched: dict[Node, list[_Counts]] = {}
        for table in tables:
            for reader in table.users:
                watched.setdefault(operand(reader, 1), []).append(counts[table])
        observe(graph, watched, self.data)  # type: ignore[arg-type]
        return {table: each.counts for table, each in counts.items()}

    def replace(self, graph: Graph, table: Node, counts: Tensor | None) -> Change:
        rows = graph.tensor(table)
        weights = torch.ones(len(rows)) if counts is None else counts + 1.0  # a token that was not seen counts a little
        wanted = Wanted(
            rows.double(), (weights / weights.mean()).double(), self.keep * rows.numel() * rows.element_size(), self.seed,
            self.tokens, counts is not None,
        )  # fmt: skip
        with torch.no_grad():
            made = METHODS[self.method].fit(wanted)
        name, first = str(table.target), min(table.users)
        constants = {
            part: graph.add_constant(f"{name}_{part}", _like(value, rows), before=first, like=[table])
            for part, value in made.parts().items()
        }
        for node in constants.values():
            graph.set_fact(node, EMBEDDING_PART, True)
        for reader in list(table.users):
            graph.replace(reader, made.emit(Build(graph, reader, constants), operand(reader, 1)))
        size = rows.numel() * rows.element_size()
        return Change(name, f"{size / 1e3:.0f} kB became {made.bytes / 1e3:.0f} kB ({self.method})")


def _names(graph: Graph, table: Node) -> list[str]:
    return [str(table.target), *(graph.site(reader) for reader in table.users)]


def _alone(table: Node) -> bool:
    return all(reader.target is aten.embedding.default and operand(reader) is table for reader in table.users)


def _like(value: Tensor, table: Tensor) -> Tensor:
    return value.to(table.dtype).contiguous() if value.is_floating_point() else value


class _Counts:
    """How often each id occurs."""

    def __init__(self, rows: int) -> None:
        self.counts = torch.zeros(rows)

    def update(self, value: Tensor) -> None:
        self.counts += torch.bincount(value.flatten(), minlength=len(self.counts)).float()
