"""Every benchmark can be started: what it imports of the library and of the tests' helpers exists."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RIVALS = (
    "tensorly",
    "pyopencl",
    "openvino",
    "nncf",
    "torch_pruning",
    "brevitas",
    "aimet_onnx",
    "timm",
    "torchvision",
    "tvm",
)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    missing = done.stderr.rpartition("ModuleNotFoundError: No module named ")[2].strip().strip("'").partition(".")[0]
    if missing in RIVALS:
        pytest.skip(f"{name} needs {missing}")
    assert done.returncode == 0, done.stderr[-2000:]
