"""Commands that need no network answer without PyTorch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "scipy", "tvm", "yaml")
LISTED = f"import sys; print(*sorted({{*sys.modules}} & {{*{HEAVY}}}), file=sys.stderr)"


def imported(code: str) -> tuple[str, list[str]]:
    """What a fresh interpreter prints, and which of the heavy modules it has imported then."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LISTED}"], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.split()


def command(*arguments: str) -> str:
    return (
        f"from graphopt.cli.main import app\napp(args={list(arguments)!r}, prog_name='graphopt', standalone_mode=False)"
    )


def test_importing_graphopt_imports_nothing_heavy() -> None:
    assert imported("import graphopt; print(graphopt.targets.names())")[1] == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["targets"], "tvm-cortex-m7"),
        (["targets", "nnie"], "log8"),
        (["--version"], "torch"),
        (["optimize", "--help"], "--calibration"),
        (["doctor"], "onnxruntime"),
        (["passes"], "fold-batch-norm"),
        (["passes", "learn-rounding"], "gptq"),
    ],
)
def test_commands_about_this_machine_and_the_program_import_nothing_heavy(arguments: list[str], shown: str) -> None:
    text, heavy = imported(command(*arguments))
    assert shown in text
    assert heavy == []


def test_formats_are_data_until_one_is_fitted() -> None:
    code = "from graphopt.formats import parse; found = parse('u16 affine'); print(found, found.code_range)"
    assert imported(code) == ("u16 affine per tensor (0, 65535)\n", [])


@pytest.mark.thorough
def test_operators_and_types_of_tensors_are_those_of_torch() -> None:
    assert "torch" in imported("from graphopt.formats import FAKE_QUANTIZE; print(FAKE_QUANTIZE)")[1]
    assert "torch" in imported("from graphopt.formats import Format; print(Format().dtype)")[1]


def test_an_unknown_name_of_formats_is_no_operator() -> None:
    import graphopt.formats

    with pytest.raises(AttributeError, match="has no attribute 'FAKE_QUANTISE'"):
        graphopt.formats.FAKE_QUANTISE  # noqa: B018
