"""A few hundred files changed at random, and on demand ten thousand; see `fuzz_files.py`."""

from __future__ import annotations

import pytest
from fuzz_files import KINDS, run


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_run_nothing_and_raise_our_errors_only(kind: str) -> None:
    outcomes = run(30 if kind == "program" else 80, first=0, kinds=(kind,))["outcomes"][kind]
    assert outcomes.get("read", 0) < sum(outcomes.values())  # some were refused
    assert any(name.endswith("Error") for name in outcomes)


@pytest.mark.slow
def test_ten_thousand_changed_files_run_nothing() -> None:
    assert sum(sum(o.values()) for o in run(10_000, first=1_000)["outcomes"].values()) == 10_000
