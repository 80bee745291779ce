"""A command of graphopt, as the terminal would run it, in this process; and models that tests name to it."""

from __future__ import annotations

import sys

from typer.testing import CliRunner, Result

from graphopt.cli import main

MODELS = """
import time
import torch
from torch import nn

def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
made = nn.Linear(3, 2)
def broken(): raise TypeError("two\\nlines")
def accuracy(model): return 0.5
def slow():
    print("started", flush=True)
    time.sleep(60)
"""


def run(*args: object) -> Result:
    """What a command prints, and its exit code; the models of `tests/cli/conftest.py` are read anew."""
    sys.modules.pop("cli_models", None)
    return CliRunner().invoke(main.app, [*map(str, args)])
