"""The workflow and the Dockerfile of docs/guides/ci.md, step by step, in a folder and an environment of their own.

What stands for the services: `uses` steps are what they leave (a checkout in a project, a fresh Python), absolute paths of the
image lie in a temporary folder, and `apt-get` only says what it was asked for. Packages come from where pip finds them here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/guides/ci.md").read_text()
NETWORK = """
from collections import OrderedDict

import numpy as np
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    body = {"conv1": nn.Conv2d(3, 16, 3, padding=1), "act1": nn.ReLU(), "conv2": nn.Conv2d(16, 32, 3, padding=1)}
    body |= {"act2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(32, 10)}
    return nn.Sequential(OrderedDict(body)).eval()


def typical():
    return np.random.default_rng(0).standard_normal((32, 3, 16, 16), dtype=np.float32)


def accuracy(model):
    x = torch.from_numpy(typical())
    return float((torch.as_tensor(model(x)).argmax(1) == make()(x).argmax(1)).float().mean())
"""
JOB = "model: net:make\ncalibration: net:typical\ninput-shape: 1,3,16,16\nmeasure: false\n"


def block(language: str, begins: str = "", guide: str = GUIDE) -> str:
    """The block of the guide in this language that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", guide, re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(begins)]
    return str(found)


def checkout(folder: Path) -> None:
    """The files of the project as `git clone` or `COPY .` leaves them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    if not listed:
        pytest.skip("needs a checkout with Git")
    folder.mkdir(parents=True)
    names = "\0".join(name for name in listed.split("\0") if name and os.path.lexists(ROOT / name))
    archive = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-"], cwd=ROOT, input=names.encode(), capture_output=True, check=True
    )
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True)


def project(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NETWORK)
    (folder / "job.yaml").write_text(JOB)


def environment(folder: Path, *before: Path) -> dict[str, str]:
    """A fresh Python first on the path, which sees nothing of this one."""
    venv.create(folder, with_pip=True)
    names = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join(map(str, [*before, folder / "bin", names["PATH"]]))
    return {**names, "PATH": path, "VIRTUAL_ENV": str(folder), "OMP_NUM_THREADS": "1"}


def run(command: str, folder: Path, names: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], cwd=folder, env=names, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_workflow_is_one_that_github_reads() -> None:
    workflow = yaml.safe_load(block("yaml", "name: int8"))
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    kept = next(step["with"]["path"].split("\n") for step in job["steps"] if "upload" in step.get("uses", ""))
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert all(name in commands for name in kept)


@pytest.mark.thorough
def test_a_job_with_options_of_every_kind_runs(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    text = block("yaml", "# what", (ROOT / "docs/guides/command-line.md").read_text())
    project(tmp_path)
    (tmp_path / "job.yaml").write_text(text)
    names = {**os.environ, "PYTHONPATH": str(ROOT)}
    run(f"{shlex.quote(sys.executable)} -m graphopt run job.yaml", tmp_path, names)
    report = json.loads((tmp_path / "deployed/manifest.json").read_text())["report"]
    steps = {step["name"].partition("(")[0] for step in report["steps"]}
    assert {"Prune", "Quantize", "LearnRounding", "Train"} <= steps
    given = yaml.safe_load(text)
    assert all((tmp_path / given[option]).exists() for option in ("out", "report", "dump", "tune-database"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_workflow_leaves_what_it_uploads(tmp_path: Path) -> None:
    steps = next(iter(yaml.safe_load(block("yaml", "name: int8"))["jobs"].values()))["steps"]
    work = tmp_path / "work"
    project(work)
    checkout(work / "graphopt")
    names = environment(tmp_path / "python")
    for step in steps:
        if "run" in step:
            run(step["run"], work, names)
    kept = next(step["with"]["path"].split("\n") for step in steps if "upload" in step.get("uses", ""))
    assert all((work / name).exists() for name in kept)
    assert json.loads((work / "deployed/manifest.json").read_text())["target"]["name"] == "x86"
    run(
        block("sh", "set -e").replace("drop <= 0.005", "drop <= 0.1").replace("job.yaml", "judged.yaml"),
        judged(work),
        names,
    )


def judged(work: Path) -> Path:
    """The same job with a function that judges, as the script of the guide takes for granted."""
    (work / "judged.yaml").write_text(f"{JOB}target: x86\nevaluate: net:accuracy\n")
    return work


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_image_is_built_and_its_command_runs(tmp_path: Path) -> None:
    image, tools = tmp_path / "image", tmp_path / "tools"
    tools.mkdir()
    asked = tools / "asked"
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(asked))}\n')
    (tools / "apt-get").chmod(0o755)
    inside = lambda text: re.sub(r"(?<![\w.*])/(?=(src|work|var)\b)", f"{image}/", text)  # noqa: E731
    names, folder, entry = environment(tmp_path / "python", tools), image, ""
    for line in block("dockerfile").splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            checkout(Path(inside(rest.split()[-1])))
        elif word == "WORKDIR":
            folder = Path(inside(rest))
        elif word == "RUN":
            image.mkdir(exist_ok=True)
            run(inside(rest), image, names)
        elif word == "ENTRYPOINT":
            entry = shlex.join(json.loads(rest))
        else:
            assert word in ("FROM", "#"), line
    assert "install -y --no-install-recommends g++" in asked.read_text()
    folder.mkdir(parents=True)
    project(folder)
    started = re.search(r"^docker run .* graphopt (.*)$", block("sh", "docker build"), re.MULTILINE)
    assert started is not None
    run(f"{entry} {started[1]}", folder, names)
    assert json.loads((folder / "deployed/manifest.json").read_text())["target"]["name"] == "arm"
    run(f"{entry} run job.yaml --target tvm-x86 --out machine-code", folder, names)
