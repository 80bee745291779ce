"""The decision in C gives the bits that `Policy` gives, whatever the compiler may do with products and sums."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")

from graphopt.backends.tvm.bare import decision
from graphopt.policies import Policy
from graphopt.policies.stages import History
from graphopt.targets import architecture

RANDOM = np.random.default_rng(0)
STAGES, COUNT = 3, 3000
WEIGHTS = ((1.0, 2.0, -0.5, 0.3, -1.0), (0.5, 1.5, 0.2, 2.0, -1.2))
TEMPERATURES = (1.37, 0.61, 1.0)
COMPILERS = {
    "gcc -O0": ["gcc", "-O0"],
    "gcc, products fused": ["gcc", "-O3", "-march=native", "-ffp-contract=fast"],
    "clang, products fused": ["clang", "-O3", "-march=native", "-ffp-contract=fast"],
}
here = pytest.mark.skipif(architecture() != "x86_64", reason="runs C on this machine: needs x86-64")
TYPES = {"float": np.float32, "double": np.float64}


def compiled(policy: Policy, type: str, classes: int, compiler: list[str], folder: Path) -> Any:
    """`decide(logits, sure)`: logits of all stages, one behind the other; how sure each stage but the last is."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"needs {compiler[0]}")
    lines = [*(f"#include {name}" for name in decision.headers(policy)), *decision.functions(policy, type, classes)]
    lines += [f"void decide(const {type} *output0, double *found) {{"]
    if policy.counts_agreement:
        lines += ["  int streak = 1, last = -1, now;"]
    if policy.weights:
        rows = ", ".join("{" + ", ".join(map(repr, each)) + "}" for each in policy.weights)
        lines += [f"  static const double weights[][5] = {{{rows}}};"]
    for stage in range(STAGES - 1):
        if policy.counts_agreement:
            lines += ["  now = predicted(output0); streak = now == last ? streak + 1 : 1; last = now;"]
        lines += [f"  found[{stage}] = {decision.sure(policy, stage)};", f"  output0 += {classes};"]
    source = folder / "decision.c"
    source.write_text("\n".join([*lines, "  (void)output0;", "}", ""]))
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, *strict, source, "-o", folder / "decision.so", "-lm"], check=True)
    return ctypes.CDLL(str(folder / "decision.so")).decide


def logits(type: str, classes: int) -> Any:
    """[stages, N, classes]: small and large, equal ones, and what is no number."""
    found = RANDOM.standard_normal((STAGES, COUNT, classes)) * 10 ** RANDOM.uniform(-3, 2, (STAGES, COUNT, 1))
    found[:, :200] = found[:, :200].round()
    found[:, 200:210, 0], found[:, 210:220, -1], found[:, 220:230] = np.nan, np.inf, -np.inf
    found[:, 230:240, 1], found[:, 240:245] = np.nan, np.nan
    return found.astype(TYPES[type])


@here
@pytest.mark.parametrize("how", COMPILERS)
@pytest.mark.parametrize("confidence", ["softmax", "entropy", "margin", "agreement", "learned"])
@pytest.mark.parametrize(("type", "classes"), [("float", 10), ("double", 2), ("float", 131)])
def test_c_is_as_sure_as_the_policy_to_the_last_bit(
    how: str, confidence: str, type: str, classes: int, tmp_path: Path
) -> None:
    weights = WEIGHTS if confidence == "learned" else ()
    policy = Policy((None,) * (STAGES - 1), confidence, TEMPERATURES, weights)
    decide, given = compiled(policy, type, classes, COMPILERS[how], tmp_path), logits(type, classes)
    found = np.zeros((COUNT, STAGES - 1))
    for sample in range(COUNT):
        rows = np.ascontiguousarray(given[:, sample])
        decide(ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(found[sample].ctypes.data))
    history = History(policy, COUNT)
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = np.stack([history.confidence(stage, [given[stage]]) for stage in range(STAGES - 1)], axis=1)
    assert np.array_equal(found.view(np.int64), wanted.view(np.int64))


@here
def test_fast_mathematics_is_refused_by_the_source_itself(tmp_path: Path) -> None:
    """Its sums would be in another order."""
    with pytest.raises(subprocess.CalledProcessError):
        compiled(Policy((None, None)), "float", 10, ["gcc", "-ffast-math"], tmp_path)
