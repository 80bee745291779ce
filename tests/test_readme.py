"""What the README shows must be there."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from graphopt.cli.main import app

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_a_fresh_machine_takes_two_commands() -> None:
    commands = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "venv" in block]
    demo, tests = commands
    assert "\n" not in demo + tests
    assert demo.endswith(".venv/bin/graphopt demo")
    assert all("pip install -c constraints.txt " in command for command in commands)
    marked = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.DOTALL)
    assert marked is not None, "continuous integration takes the test command from between these markers"
    assert marked[1] == tests


def test_the_constraints_are_single_releases_that_the_project_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [Requirement(r) for r in [*project["dependencies"], *(r for name in extras for r in extras[name])]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {found[1]: found[2] for line in lines if (found := re.fullmatch(r"([\w-]+)==([\d.]+(?:post\d+)?)", line))}
    assert len(pinned) == len(lines)
    for needed in listed:
        if needed.name in pinned:
            assert pinned[needed.name] in needed.specifier, needed
    required = {Requirement(r).name for r in [*project["dependencies"], *extras["tvm"], *extras["test"]]} - {"graphopt"}
    assert required <= pinned.keys()


def test_no_newer_release_of_torch_is_kept_out() -> None:
    (torch,) = [
        r
        for r in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if r.startswith("torch")
    ]
    assert {part.operator for part in Requirement(torch).specifier} == {">="}


def test_every_command_and_option_it_shows_exists() -> None:
    shown = re.sub(r"\\\\\n", " ", README)
    lines = [line.split("#")[0].split() for line in shown.splitlines() if line.startswith("graphopt ")]
    assert len(lines) >= 5
    for _, command, *rest in lines:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0, command
        assert all(option in result.stdout for option in rest if option.startswith("--"))


def test_the_guide_to_the_command_line_has_every_command() -> None:
    guide = (ROOT / "docs/guides/command-line.md").read_text()
    table = guide[guide.index("| command |") : guide.index("## Models")]
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|[^|]*\|$)", table, re.MULTILINE)) >= commands


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(r"^\*\*(.+?)\.\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(terms) >= 40
    assert terms == sorted(terms, key=str.lower)


def test_the_files_it_names_exist() -> None:
    named = re.findall(r"(?:graphopt|passes|backends|tests|benchmarks|docs)/[\w/]+\.(?:py|md)", README)
    assert "docs/internals/architecture.md" in named
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert missing == []
