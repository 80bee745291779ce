import io

import pytest
from rich.console import Console

from graphopt.cli import terminal as drawn
from graphopt.utils import terminal
from graphopt.utils.progress import progress, track
from graphopt.utils.tables import Column, Line, Table, numbers


@pytest.fixture
def rich_terminal(monkeypatch: pytest.MonkeyPatch) -> drawn.RichTerminal:
    installed = drawn.RichTerminal()
    monkeypatch.setattr(terminal, "_installed", installed)
    return installed


def test_items_pass_through_and_a_pipe_sees_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert list(track(iter("ab"), "counting", total=2)) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_bars_and_nested_ones_share_the_display(
    rich_terminal: drawn.RichTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(drawn, "Console", lambda **_: Console(file=out, force_terminal=True, width=80))
    for _ in track(range(2), "outer"):
        display = rich_terminal._active
        with progress("inner", total=1) as advance:
            assert rich_terminal._active is display
            advance()
    assert "outer" in out.getvalue()
    assert rich_terminal._active is None


def test_leaving_a_loop_early_ends_the_display(rich_terminal: drawn.RichTerminal) -> None:
    items = track(range(10), "counting")
    next(items)
    assert rich_terminal._active is not None
    items.close()  # type: ignore[attr-defined]
    assert rich_terminal._active is None


BLOCKS = [Line("a title", "title"), Table([Column("name"), *numbers("size")], [["[bold]x[/bold]", "12"]])]


def test_without_a_terminal_the_library_prints_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_installed", None)
    monkeypatch.setattr(terminal, "_make", None)
    assert list(track(range(2), "counting")) == [0, 1]
    terminal.show(BLOCKS, 80)
    assert capsys.readouterr().out.splitlines()[0] == "a title"


def test_a_terminal_gets_tables_in_which_names_are_not_markup(
    rich_terminal: drawn.RichTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(drawn, "Console", lambda **_: Console(file=out, force_terminal=True, width=80))
    rich_terminal.show(BLOCKS, 80)
    assert "[bold]x[/bold]" in out.getvalue()


@pytest.mark.thorough
def test_rich_is_imported_where_something_is_drawn_and_nowhere_else() -> None:
    import subprocess
    import sys

    code = (
        "import sys, graphopt, graphopt.artifacts.report, graphopt.evaluation.sensitivity; print('rich' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
