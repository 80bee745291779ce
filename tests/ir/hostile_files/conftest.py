"""A saved graph and an exported program to do harm to; and after every test a check that nothing of it was run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import exported, graph, set_off


@pytest.fixture(autouse=True)
def nothing_is_set_off() -> Iterator[None]:
    yield
    assert not set_off()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "graph.pt2"
    graph().save(path)
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("program") / "program.pt2")
