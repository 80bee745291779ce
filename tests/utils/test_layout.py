"""Where nodes of a graph are drawn: edges go down, nothing overlaps, chains are straight."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.utils.layout import BEND, layout


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    size = draw(st.integers(1, 14))
    return [draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else [] for i in range(size)]


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_edges_go_down_and_nothing_overlaps(reads: list[list[int]]) -> None:
    found = layout(reads, gap=0.2)
    assert set(found.edges) == {(source, node) for node, sources in enumerate(reads) for source in sources}
    taken: dict[int, list[tuple[float, float]]] = {}
    for row, place in zip(found.rows, found.places, strict=True):
        taken.setdefault(row, []).append((place, 1.0))
    for (source, node), bends in found.edges.items():
        assert [row for row, _ in bends] == list(range(found.rows[source] + 1, found.rows[node]))
        for row, place in bends:
            taken.setdefault(row, []).append((place, BEND))
    for members in taken.values():
        members.sort()
        for (a, wide), (b, wider) in pairwise(members):
            assert b - a >= (wide + wider) / 2 + 0.2 - 1e-9
        assert members[0][0] - members[0][1] / 2 >= -1e-9
        assert members[-1][0] + members[-1][1] / 2 <= found.width + 1e-9
    assert found.height == max(found.rows) + 1


def test_a_chain_is_straight_and_a_skip_passes_beside_it() -> None:
    found = layout([[], [0], [1], [2, 0]])
    assert found.rows == [0, 1, 2, 3]
    assert len({round(place, 6) for place in found.places[1:3]}) == 1
    (first, place), (second, other) = found.edges[0, 3]
    assert (first, second) == (1, 2)
    assert abs(place - other) < 1e-6
    assert abs(place - found.places[1]) >= (1 + BEND) / 2


def test_what_reads_nothing_lies_just_above_its_first_reader() -> None:
    assert layout([[], [0], [1], [], [2, 3]]).rows == [0, 1, 2, 2, 3]


def test_edges_that_need_not_cross_do_not() -> None:
    found = layout([[], [0], [0], [2], [1]])  # 3 reads the right one, 4 the left one
    assert (found.places[1] < found.places[2]) == (found.places[4] < found.places[3])


def test_nothing_is_laid_out_without_nodes() -> None:
    assert layout([]).height == 0
