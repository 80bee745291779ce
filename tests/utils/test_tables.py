"""Tables as plain text."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.utils.tables import Column, Facts, Line, Table, numbers, plain


def test_text_aligns_left_and_numbers_right() -> None:
    table = Table([Column("layer"), *numbers("bits")], [["conv1", "8"], ["a longer name", "16"]])
    assert plain([table], 80) == (
        "\n layer           bits\n ────────────────────\n conv1              8\n a longer name     16\n"
    )


def test_columns_of_text_wrap_where_the_table_is_too_wide() -> None:
    table = Table([Column("why"), *numbers("MACs")], [["no integer kernel for this operator here", "1,000"]])
    lines = plain([table], 30).splitlines()
    assert max(map(len, lines)) <= 30
    assert [line.split() for line in lines[3:5]] == [
        ["no", "integer", "kernel", "for", "1,000"],
        ["this", "operator", "here"],
    ]


def test_facts_of_several_lines_stand_under_each_other() -> None:
    assert plain([Facts([("a", "one\ntwo"), ("longer", "three")])], 80) == "a       one\n        two\nlonger  three"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy
@given(st.lists(st.tuples(st.text("ab \n[]", max_size=60), st.text("12", max_size=8)), max_size=4), st.integers(20, 80))
def test_no_text_is_lost(rows: list[tuple[str, str]], width: int) -> None:
    shown = plain([Table([Column("name"), *numbers("size")], rows), Line("end")], width)
    for character in "ab[]12":
        headers = "namesizeend".count(character)
        assert shown.count(character) == headers + sum(cell.count(character) for row in rows for cell in row)
