"""A fit that was interrupted goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from fitted import DATA, assert_equal, changed, counting, pair, tasks
from torch import Tensor

from graphopt.fitting.fit import fit
from graphopt.ir.graph import Graph


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_work_goes_on_with_the_same_result(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, graph = pair()
    whole, broken = graph.clone(), graph.clone()
    fits = fit(original, whole, DATA, tasks(original, whole), "fitting")
    with monkeypatch.context() as patch:
        counting(patch, lambda count: count == after)
        with pytest.raises(KeyboardInterrupt):
            fit(original, broken, DATA, tasks(original, broken), "fitting", checkpoint=tmp_path)
    again = graph.clone()
    done = counting(monkeypatch, lambda count: False)
    found = fit(original, again, DATA, tasks(original, again), "fitting", checkpoint=tmp_path)
    assert done == ["stem", "depthwise", "wide", "head"][after:]
    assert [(f.before, f.after) for f in found] == [(f.before, f.after) for f in fits]
    assert_equal(whole, again)


@pytest.mark.thorough
def test_a_checkpoint_is_that_of_one_graph_its_data_and_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, graph = pair()
    done = counting(monkeypatch, lambda count: False)

    def solved(graph: Graph, data: list[list[Tensor]], options: str) -> int:
        start, mine = len(done), graph.clone()
        fit(original, mine, data, tasks(original, mine), "fitting", checkpoint=tmp_path, options=options)
        return len(done) - start

    assert solved(graph, DATA, "") == 4
    assert solved(graph, DATA, "") == 0
    assert solved(graph, DATA, "others") == 4
    assert solved(graph, DATA[:2], "") == 4
    assert solved(changed(original, 0.2), DATA, "") == 4
