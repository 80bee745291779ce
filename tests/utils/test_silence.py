"""What libraries print straight to standard output."""

from __future__ import annotations

import os

import pytest

from graphopt.utils.silence import silent


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
