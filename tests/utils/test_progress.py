import io

import pytest
from rich.console import Console

from graphopt.utils import progress as module
from graphopt.utils.progress import progress, track


def test_items_pass_through_and_a_pipe_sees_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert list(track(iter("ab"), "counting", total=2)) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_bars_and_nested_ones_share_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=out, force_terminal=True, width=80))
    for _ in track(range(2), "outer"):
        with progress("inner", total=1) as advance:
            assert len(module._active) == 1
            advance()
    assert "outer" in out.getvalue()
    assert module._active == []


def test_leaving_a_loop_early_ends_the_display() -> None:
    items = track(range(10), "counting")
    next(items)
    assert len(module._active) == 1
    items.close()  # type: ignore[attr-defined]
    assert module._active == []
