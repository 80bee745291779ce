"""Every benchmark can be started: what it imports of the library and of the tests' helpers exists."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# What need not be installed where the tests run.
OTHERS = {
    "tensorly",
    "pyopencl",
    "openvino",
    "nncf",
    "torch_pruning",
    "timm",
    "torchvision",
    "transformers",
    "tvm",
    "faiss",
}
IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2].split():
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name.partition(".")[0])
"""


@pytest.mark.thorough
def test_benchmarks_find_what_they_import() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(BENCHMARKS), " ".join(names)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    missing = dict(line.split() for line in done.stdout.splitlines())
    assert {name: module for name, module in missing.items() if module not in OTHERS} == {}
