"""Where the nodes of a directed acyclic graph are drawn: in rows, every edge downwards, few crossings, edges nearly straight.

    rows          a node lies one row below the lowest that it reads; one that reads nothing, just above its first reader
    long edges    pass through every row between by a bend of their own
    order         within a row by the mean place of the neighbours, rows down and up in turn
    places        as near to the neighbours as the distances in a row allow (least squares)

Paper:  Sugiyama, Tagawa and Toda 1981, "Methods for Visual Understanding of Hierarchical System Structures".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SWEEPS = 12
BEND = 0.18  # the width of an edge that passes by, where a node has 1


@dataclass
class Layout:
    """Attributes:
    rows: the row of each node, from 0 at the top.
    places: the middle of each node within its row; nodes are 1 wide, with `gap` between them.
    edges: (from, to) -> (row, place) of every bend between the two.
    width, height: of all, in nodes and rows.
    """

    rows: list[int]
    places: list[float]
    edges: dict[tuple[int, int], list[tuple[int, float]]]
    width: float = 1.0
    height: int = 0


@dataclass
class _Rows:
    """Nodes and bends; those from `nodes` on are bends."""

    nodes: int
    row: list[int]
    above: list[list[int]] = field(default_factory=list)
    below: list[list[int]] = field(default_factory=list)
    paths: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def members(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(max(self.row, default=-1) + 1)]
        for number, row in enumerate(self.row):
            found[row].append(number)
        return found


def layout(reads: Sequence[Sequence[int]], gap: float = 0.15) -> Layout:
    """Lay a graph out.

    Args:
        reads: for each node the nodes that it reads, all of smaller numbers.
        gap: between neighbours of a row, where a node is 1 wide.
    """
    graph = _with_bends(reads, _row_numbers(reads))
    rows = _ordered(graph)
    places = _placed(graph, rows, gap)
    left = min((places[i] - _width(graph, i) / 2 for i in range(len(places))), default=0.0)
    places = [place - left for place in places]
    right = max((places[i] + _width(graph, i) / 2 for i in range(len(places))), default=1.0)
    edges = {ends: [(graph.row[b], places[b]) for b in bends] for ends, bends in graph.paths.items()}
    return Layout(graph.row[: graph.nodes], places[: graph.nodes], edges, right, len(rows))


def _row_numbers(reads: Sequence[Sequence[int]]) -> list[int]:
    rows = [0] * len(reads)
    for node, sources in enumerate(reads):
        rows[node] = max((rows[source] + 1 for source in sources), default=0)
    first_reader: dict[int, int] = {}
    for node, sources in enumerate(reads):
        for source in sources:
            first_reader[source] = min(first_reader.get(source, rows[node]), rows[node])
    return [max(0, first_reader.get(node, row + 1) - 1) if not reads[node] else row for node, row in enumerate(rows)]


def _with_bends(reads: Sequence[Sequence[int]], rows: list[int]) -> _Rows:
    graph = _Rows(len(reads), list(rows), [[] for _ in reads], [[] for _ in reads])
    for node, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            last, path = source, []
            for row in range(rows[source] + 1, rows[node]):
                bend = len(graph.row)
                graph.row.append(row)
                graph.above.append([last])
                graph.below.append([])
                graph.below[last].append(bend)
                path.append(bend)
                last = bend
            graph.above[node].append(last)
            graph.below[last].append(node)
            graph.paths[source, node] = path
    return graph


def _ordered(graph: _Rows) -> list[list[int]]:
    rows = graph.members()
    place = {node: float(number) for row in rows for number, node in enumerate(row)}
    for sweep in range(SWEEPS):
        neighbours = graph.above if sweep % 2 == 0 else graph.below
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            row.sort(key=lambda node: (_mean([place[n] for n in neighbours[node]], place[node]), place[node]))
            place.update({node: float(number) for number, node in enumerate(row)})
    return rows


def _placed(graph: _Rows, rows: list[list[int]], gap: float) -> list[float]:
    places = [0.0] * len(graph.row)
    for row in rows:
        _spread(graph, row, [float(number) for number in range(len(row))], places, gap)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            near = graph.above if down else graph.below
            far = graph.below if down else graph.above
            wanted = [
                _mean([places[n] for n in near[node]] or [places[n] for n in far[node]], places[node]) for node in row
            ]
            _spread(graph, row, wanted, places, gap)
    return places


def _spread(graph: _Rows, row: list[int], wanted: list[float], places: list[float], gap: float) -> None:
    """The places of a row nearest to the wanted ones that keep their order and distances: isotonic regression."""
    offsets, total = [], 0.0
    for number, node in enumerate(row):
        if number:
            total += (_width(graph, row[number - 1]) + _width(graph, node)) / 2 + gap
        offsets.append(total)
    pools: list[tuple[float, int]] = []  # (mean, members) of places that touch
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append((want - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    shifted = [mean for mean, members in pools for _ in range(members)]
    for node, shift, offset in zip(row, shifted, offsets, strict=True):
        places[node] = shift + offset


def _width(graph: _Rows, node: int) -> float:
    return 1.0 if node < graph.nodes else BEND


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
