"""A few hundred files changed at random, and on demand ten thousand; see `fuzz_files.py`."""

from __future__ import annotations

import pytest
from fuzz_files import run


@pytest.mark.thorough
def test_changed_files_run_nothing_and_raise_our_errors_only() -> None:
    for kind, outcomes in run(250, first=0)["outcomes"].items():
        assert sum(outcomes.values()) == 50, kind
        assert any(name.endswith("Error") for name in outcomes), f"no {kind} was refused"


@pytest.mark.slow
def test_ten_thousand_changed_files_run_nothing() -> None:
    assert sum(sum(o.values()) for o in run(10_000, first=1_000)["outcomes"].values()) == 10_000
