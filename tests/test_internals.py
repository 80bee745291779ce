"""The examples of docs/internals run, top to bottom, page by page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_layering import ROOT

from graphopt.artifacts import registry

PAGES = sorted((ROOT / "docs" / "internals").glob("*-*.md"))
IMPORTS = """
from dataclasses import replace
import torch
import torch.utils._pytree as pytree
from torch import nn
import graphopt
from graphopt.targets import find
"""


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Stands for the entry point of an installed package."""
    found = registry.plugins.find

    def add(backend: Any) -> None:
        monkeypatch.setattr(
            registry.plugins,
            "find",
            lambda group, name, kind: backend if name == backend.name else found(group, name, kind),
        )

    return add


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, register: Callable[[Any], None]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    space: dict[str, Any] = {"register": register, "__name__": page.stem.replace("-", "_")}
    exec(IMPORTS, space)
    import sys
    import types

    module = types.ModuleType(space["__name__"])  # dataclasses look their module up
    sys.modules[space["__name__"]] = module
    try:
        for block in blocks:
            exec(compile(block, str(page), "exec"), space)
    finally:
        del sys.modules[space["__name__"]]


def test_the_pages_are_named_in_the_map() -> None:
    text = (ROOT / "docs" / "internals" / "architecture.md").read_text()
    assert [page.name for page in PAGES if page.stem != "architecture" and f"({page.name})" not in text] == []
