"""Fixtures that tests share: real data where it is at hand, and one thread per test process."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from graphopt.cli import reporting

ROOT = Path(__file__).parent.parent


def pytest_collection() -> None:
    """Python's collector of garbage walks all there is, again and again while modules are imported: half of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be walked again while tests run."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks of tests are small: more threads gain nothing, and lose much where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command silences warnings and logs for good, as its process ends with it; here others follow."""
    monkeypatch.setattr(reporting, "quieten", lambda: None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images and trained weights: the folder $GRAPHOPT_DATA, by default ../shared/data; skips where missing."""
    folder = Path(os.environ.get("GRAPHOPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real data and weights, but there is no folder {folder} (set GRAPHOPT_DATA)")
    return folder


@pytest.fixture(scope="session")
def zoo(data_dir: Path) -> ModuleType:
    """`zoo.py` of the data folder: trained networks and the images they were trained for."""
    path = data_dir / "zoo.py"
    if not path.is_file():
        pytest.skip(f"needs {path}, which loads the trained networks")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
