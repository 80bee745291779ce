"""What the README shows must be there."""

import re
from pathlib import Path

from typer.testing import CliRunner

from graphopt.cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_a_fresh_machine_takes_two_commands() -> None:
    commands = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "venv" in block]
    demo, tests = commands
    assert "\n" not in demo + tests
    assert demo.endswith(".venv/bin/graphopt demo")
    marked = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.DOTALL)
    assert marked is not None, "continuous integration takes the test command from between these markers"
    assert marked[1] == tests


def test_every_command_and_option_it_shows_exists() -> None:
    shown = re.sub(r"\\\\\n", " ", README)
    lines = [line.split("#")[0].split() for line in shown.splitlines() if line.startswith("graphopt ")]
    assert len(lines) >= 5
    for _, command, *rest in lines:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0, command
        assert all(option in result.stdout for option in rest if option.startswith("--"))


def test_the_files_it_names_exist() -> None:
    named = re.findall(r"(?:graphopt|passes|backends|tests|benchmarks|docs)/[\w/]+\.(?:py|md)", README)
    assert "docs/internals/architecture.md" in named
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert missing == []
