"""Two processes under torchrun train as one does; one that fails is started again and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = """
import sys, torch
from torch import nn
from training import X, Y
from graphopt.ir.graph import Graph
from graphopt.training import train, processes, Compression

folder, fails = sys.argv[1], sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), {norm} nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)).eval()

class Fails(Compression):
    def step(self, progress):
        import os
        if fails == "once" and processes.rank() == 1 and progress > 0.6 and not os.path.exists(folder + "/failed"):
            open(folder + "/failed", "w").close()
            sys.exit(3)

graph = Graph.capture(model, X[:2])
calls = []
def accuracy(m):
    calls.append(processes.rank())
    return 100 * float((m(X).argmax(1) == Y).double().mean())

report = train(graph, (X, Y), compress=[Fails()], epochs=4, batch_size=16, optimizer="sgd", rate=0.1, evaluate=accuracy,
               checkpoint=folder + "/checkpoint")
assert set(calls) <= {{0}}
import os
name = os.environ.get("RANK", "0")
torch.save([graph.state_dict(), [e.score for e in report.epochs]], f"{{folder}}/state{{name}}.pt")
"""


def run(
    folder: Path, processes: int, *, norm: str = "", fails: str = "never"
) -> list[tuple[dict[str, torch.Tensor], list[float]]]:
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM.format(norm=norm))
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts", "1", "--standalone"]
    command = [sys.executable, *(start if processes > 1 else []), str(program), str(folder), fails]
    paths = [str(HELPERS), str(HELPERS.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"state{rank}.pt") for rank in range(processes)]


@pytest.mark.thorough
def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    ((one, scores),) = run(tmp_path / "one", 1)
    both = run(tmp_path / "two", 2)
    for state, found in both:
        assert found == pytest.approx(scores, abs=2.1)
        for name, value in one.items():
            torch.testing.assert_close(state[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
def test_running_statistics_are_those_of_the_first_process(tmp_path: Path) -> None:
    first, second = run(tmp_path / "two", 2, norm="nn.BatchNorm2d(8),")
    assert all(torch.equal(a, b) for a, b in zip(first[0].values(), second[0].values(), strict=True))


@pytest.mark.thorough
def test_a_process_that_fails_is_started_again_and_the_training_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 2)
    again = run(tmp_path / "again", 2, fails="once")
    assert (tmp_path / "again" / "failed").exists()
    for (state, scores), (other, others) in zip(whole, again, strict=True):
        assert scores == others
        assert all(torch.equal(state[name], other[name]) for name in state)
