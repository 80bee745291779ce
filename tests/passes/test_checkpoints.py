"""Passes that fit layers on data go on where they were interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import images, residual
from rewriting import capture, randomised

from graphopt.fitting.least_squares import LayerWeights
from graphopt.ir.graph import Graph
from graphopt.passes.factorization import SVD, Factorize
from graphopt.passes.factorization.repair import Factors
from graphopt.passes.pruning import Prune, RemoveBlocks

DATA = [[images(8, seed=seed)] for seed in range(2)]
PASSES: dict[str, Callable[[Path | None], Any]] = {
    "Prune": lambda folder: Prune(0.7, data=DATA, scope="uniform", checkpoint=folder),
    "RemoveBlocks": lambda folder: RemoveBlocks(0.3, DATA, checkpoint=folder),
    "SVD": lambda folder: SVD(0.6, data=DATA, checkpoint=folder),
    "Factorize": lambda folder: Factorize(target_macs=0.8, data=DATA, checkpoint=folder),
}


def start() -> Graph:
    torch.manual_seed(0)
    return capture(randomised(residual()), images(2))


@pytest.mark.thorough
@pytest.mark.parametrize("name", PASSES)
def test_layers_that_are_fitted_are_remembered(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, first, again = (start() for _ in range(3))
    PASSES[name](None)(plain)
    stop, done = 1, list[str]()

    def interrupted(solve: Any) -> Any:
        def solved(self: Any, *args: Any) -> Any:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append("layer")
            return solve(self, *args)

        return solved

    for kind in (LayerWeights, Factors):
        monkeypatch.setattr(kind, "solve", interrupted(kind.solve))
    with pytest.raises(KeyboardInterrupt):
        PASSES[name](tmp_path)(first)
    assert len(list(tmp_path.glob("*/*.pt"))) == 1
    stop = -1
    PASSES[name](tmp_path)(again)
    assert len(list(tmp_path.glob("*/*.pt"))) == len(done)  # the one of before is among them, and was not solved again
    assert str(again) == str(plain)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in again.state_dict().items())
