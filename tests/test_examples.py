"""The examples run as they stand, and end in what they promise."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from test_layering import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: path.stem != "own_pass")
LAST = {  # a part of what each prints, as a regular expression
    "own_pass": r"\('1', 'computed by tanh'\)",
    "own_training_loop": r"trained 0\.9\d+, by Plain",
    "own_target": r"answers of the device, by simulation: torch\.Size\(\[1, 8, 9, 9\]\)",
    "own_pruning_criterion": "spread: ",
    "photos_to_int8": r"output float32 \(1, 3\)",
    "prune_finetune_quantize": "trained again: ",
    "encoder_with_free_length": r"50 tokens: \(3, 64\), cosine with the original at least (0\.99|1\.00)",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(LAST[path.stem], capsys.readouterr().out)


def test_each_is_expected_to_print_something() -> None:
    assert {path.stem for path in EXAMPLES} == set(LAST)
