"""Capturing exported programs and traced modules, and exporting graphs again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from capturing import Nested, aten, same, small
from torch import nn

from graphopt.ir.graph import Graph
from graphopt.ir.program import to_exported_program
from graphopt.utils.errors import InputError

# ---- Other kinds of model -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_programs_their_files_and_traced_modules_can_be_captured(tmp_path: Path) -> None:
    model, x = small(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(program, tmp_path / "model.pt2")
    fixed = torch.export.export(model, (x,))
    expected = str(Graph.capture(model, x))
    sources = (
        program,
        tmp_path / "model.pt2",
        str(tmp_path / "model.pt2"),
        fixed,
        program.module(),
        torch.compile(model),
    )
    for source in sources:
        graph = Graph.capture(source, x) if isinstance(source, nn.Module) else Graph.capture(source)
        assert str(graph) == expected
        assert set(graph.state_dict()) == {k for k in model.state_dict() if "num_batches" not in k}
        same(graph, model, torch.randn(3, 3, 6, 6))
    assert str(Graph.capture(torch.fx.symbolic_trace(model), x)) == expected


def test_a_program_exported_in_training_mode_is_refused() -> None:
    program = torch.export.export(small().train(), (torch.randn(2, 3, 6, 6),))
    for source in (program, program.run_decompositions({})):
        with pytest.raises(InputError, match=r"was exported in training mode.*export model.eval\(\)"):
            Graph.capture(source)


def test_a_captured_graph_exports_again() -> None:
    model = Nested("dict").eval()
    args = (torch.randn(1, 3), {"shift": (torch.randn(1, 3), 7)}, 2.0)
    graph = Graph.capture(model, args)
    program = to_exported_program(graph)
    assert list(program.graph_signature.user_inputs) == ["x", "extra_shift_0"]
    x, shift = torch.randn(5, 3), torch.randn(5, 3)
    found = program.module()(x, shift)
    expected = pytree.tree_leaves(graph(x, {"shift": (shift, 7)}, 2.0))[:3]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.thorough
def test_an_edited_graph_exports_again() -> None:
    graph = Graph.capture(small(), torch.randn(1, 3, 6, 6))
    conv = graph.calls(aten.conv2d.default)[0]
    graph.set_constant(conv, 1, graph.tensor(conv.args[1]) * 2)  # type: ignore[arg-type]
    graph.refresh()
    x = torch.randn(3, 3, 6, 6)
    (found,) = to_exported_program(graph).module()(x)
    assert torch.equal(found, graph(x))
    with pytest.raises(InputError, match="training mode"):
        to_exported_program(graph.train())


# ---- Models that cannot be captured ---------------------------------------------------------------------------------


def test_sizes_that_a_program_leaves_free_stay_free() -> None:
    x, layer = torch.randn(4, 3, 8, 8), nn.Conv2d(3, 4, 3).eval()
    sizes = {0: torch.export.Dim("n"), 3: torch.export.Dim("w", min=4, max=64)}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
    graph = Graph.capture(program, x)
    assert graph(torch.randn(2, 3, 8, 11)).shape == (2, 4, 6, 9)
    with pytest.raises(InputError, match=r"dimension 3 of input 'input' is 65, but 'input_3' goes from 4 to 64"):
        graph(torch.randn(2, 3, 8, 65))
    fixed = Graph.capture(program.module(), x)
    with pytest.raises(InputError, match=r"must be f32\[batch, 3, 8, 8\]"):
        fixed(torch.randn(2, 3, 8, 11))
    only_batch = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert Graph.capture(only_batch, x).dynamic_batch
