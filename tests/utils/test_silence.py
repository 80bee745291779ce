"""What libraries print straight to standard output and standard error."""

from __future__ import annotations

import os

import pytest

from graphopt.utils.silence import ERR, OUT, heard, silent


def test_only_what_is_written_meanwhile_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with silent():
        os.write(1, b"debug")
    print("behind", flush=True)
    assert capfd.readouterr().out == "before\nbehind\n"


def test_standard_output_is_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), silent():
        raise ValueError("inside")
    os.write(1, b"there")
    assert capfd.readouterr().out == "there"


def test_what_is_written_to_standard_error_can_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    with heard(ERR) as lines:
        os.write(2, b"Check failed\nin operator add\n")
    os.write(2, b"behind")
    assert lines == ["Check failed", "in operator add"]
    assert capfd.readouterr().err == "behind"


def test_both_can_be_silent_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with silent(OUT, ERR):
        os.write(1, b"one")
        os.write(2, b"two")
    assert capfd.readouterr() == ("", "")
