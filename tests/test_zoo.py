"""Published architectures: exact on the example and on another batch, printable, copied, saved, exported again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
import zoo

from graphopt.ir.graph import Graph
from graphopt.ir.program import to_exported_program


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_a_published_architecture_is_captured_exactly(name: str, tmp_path: Path) -> None:
    package = name.partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    torch.set_num_threads(1)
    model, args, kwargs = zoo.make(name)
    graph = Graph.capture(model, args, kwargs)
    assert graph.dynamic_batch, graph.notes
    for batch in (1, 3):
        many = pytree.tree_map(lambda t, n=batch: torch.cat([t, t.flip(1), t])[:n], (args, kwargs))
        with torch.no_grad():
            found, expected = graph(*many[0], **many[1]), model(*many[0], **many[1])
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    text = str(graph)
    assert str(graph.clone()) == text
    graph.save(tmp_path / "graph")
    assert str(Graph.load(tmp_path / "graph")) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/swin_t", "torchvision/shufflenet_v2_x1_0", "transformers/bert"])
def test_a_published_architecture_exports_again(name: str) -> None:
    if importlib.util.find_spec(name.partition("/")[0]) is None:
        pytest.skip(f"{name.partition('/')[0]} is not installed")
    model, args, kwargs = zoo.make(name)
    graph = Graph.capture(model, args, kwargs)
    many = [torch.cat([t, t.flip(1), t]) for t in graph.example.tensors()]
    with torch.no_grad():
        found = to_exported_program(graph).module()(*many)
        expected = [t for t in pytree.tree_leaves(graph.module(*many)) if isinstance(t, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
