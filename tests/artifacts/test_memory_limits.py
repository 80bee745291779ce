"""Whether C and objects fit a microcontroller is said with the bytes that are too many, and with what takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blocks import images, model_of, simulated
from typer.testing import CliRunner

from graphopt.artifacts.manifest import Manifest
from graphopt.artifacts.memory import memory_size, misfits
from graphopt.cli.main import app
from graphopt.targets import find
from graphopt.utils.errors import InputError

FACTS = {
    "code_bytes": 20_000, "weight_bytes": 80_000, "workspace_bytes": 42_000,
    "fullest": {"call": "b1", "tensors": [["result of stem", 16_000], ["result of a1", 16_000], ["temporary of b1", 10_000]]},
}  # fmt: skip


def manifest(**options: Any) -> Manifest:
    return Manifest("net", {}, [], [], None, None, options=options)


@pytest.mark.parametrize(("text", "size"), [("65536", 65536), ("64K", 65536), ("64kb", 65536), ("1.5M", 3 << 19)])
def test_a_size_is_bytes_or_multiples_of_1024(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1K", "64G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no size of memory"):
        memory_size(text)


def test_what_fits_is_not_mentioned() -> None:
    assert misfits(manifest(objects=FACTS), 42_000, 100_000) == []
    assert misfits(manifest(objects=FACTS)) == []


def test_what_does_not_fit_is_said_with_bytes_and_tensors() -> None:
    ram, flash = misfits(manifest(objects=FACTS), 32_000, 99_000)
    assert ram == (
        "the workspace takes 42 kB of RAM, 10 kB too much; while b1 runs, there lie result of stem 16 kB, result of a1 16 kB, "
        "temporary of b1 10 kB"
    )
    assert flash == "code and constants take 100 kB of flash, 1 kB too much: 20 kB of code and 80 kB of constants"


def test_other_artifacts_have_no_such_memory() -> None:
    with pytest.raises(InputError, match="net is not C and objects"):
        misfits(manifest())


def test_the_command_says_what_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")
    from graphopt.backends.tvm import lower

    target = find("tvm-cortex-m7")
    lower(simulated(model_of("residual"), target, images(2)), target).save(tmp_path / "deployed")
    command = ["compile", str(tmp_path / "deployed"), "--out", str(tmp_path / "bare")]
    done = CliRunner().invoke(app, [*command, "--ram", "1K", "--flash", "256K"])
    assert done.exit_code != 0
    said = " ".join(done.output.split())
    assert "too much; while" in said
    assert "of flash" not in said
    done = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "again"), "--ram", "64K", "--flash", "256K"])
    assert done.exit_code == 0, done.output
    assert "model.c" in done.output
