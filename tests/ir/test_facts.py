"""Facts: what passes know about nodes is typed, copied, saved whatever its type, and forgotten where it no longer holds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from capture_once import capture_once
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir import facts
from graphopt.ir.facts import (
    BIAS_CORRECTED,
    FLOAT_REFERENCE,
    LEFT,
    MOMENTS,
    REFERENCE_LEFT_OUT,
    REFINED,
    ROUNDING_LEARNED,
    Moments,
)
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import is_quantizer, quantizers
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import find
from graphopt.utils.errors import InputError


def plain() -> Graph:
    torch.manual_seed(0)
    return capture_once(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(2, 4))


def quantized() -> Graph:
    graph = plain()
    run([Quantize(find("x86"), [[torch.randn(8, 4)]])], graph, verify=False)
    return graph


def layers(graph: Graph) -> list[Layer]:
    return [layer for node in graph.calls() if (layer := Layer.of(node))]


def moments(channels: int = 6) -> Moments:
    return Moments(torch.rand(channels), torch.rand(channels))


# ---- Reading and setting --------------------------------------------------------------------------------------------


def test_a_fact_is_of_its_type() -> None:
    graph = plain()
    (first, _) = graph.calls(aten.linear.default)
    assert graph.fact(first, MOMENTS) is None
    known = moments()
    graph.set_fact(first, MOMENTS, known)
    assert graph.fact(first, MOMENTS) is known
    with pytest.raises(TypeError, match="the fact 'moments' is a Moments, got"):
        graph.set_fact(first, MOMENTS, torch.rand(6))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["moments", "val", "a b", ""])
def test_a_name_is_declared_once_and_is_not_torchs(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        facts.declare(name, bool)


@pytest.mark.parametrize("share_weights", [False, True])
def test_a_clone_knows_the_same_and_forgets_alone(share_weights: bool) -> None:
    graph = plain()
    (first, _) = graph.calls(aten.linear.default)
    graph.set_fact(first, MOMENTS, moments())
    copy = graph.clone(share_weights)
    (other, _) = copy.calls(aten.linear.default)
    assert copy.fact(other, MOMENTS) is not None
    copy.set_constant(other, WEIGHT, torch.zeros(6, 4))
    assert copy.fact(other, MOMENTS) is None
    assert graph.fact(first, MOMENTS) is not None


# ---- Files ----------------------------------------------------------------------------------------------------------


class Mixed(NamedTuple):
    name: str
    where: Tensor
    share: float


VALUES: dict[str, Any] = {
    "flag": True,
    "count": 3,
    "share": 0.5,
    "endless": float("inf"),
    "text": "why",
    "half": torch.rand(3).half(),
    "transposed": torch.rand(3, 4).T,
    "codes": torch.tensor([1, -2], dtype=torch.int8),
    "mixed": Mixed("a", torch.rand(2, 2), 0.25),
    "kind": torch.float16,
}


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(facts, "FACTS", facts.FACTS)
    for name in list(facts.FACTS):
        monkeypatch.setitem(facts.FACTS, name, facts.FACTS[name])

    def new(name: str, kind: type, **options: Any) -> Any:
        monkeypatch.setitem(facts.FACTS, name, None)  # type: ignore[arg-type]
        del facts.FACTS[name]
        return facts.declare(name, kind, **options)

    return new


@pytest.mark.parametrize("what", VALUES)
def test_a_file_holds_facts_of_any_plain_type(what: str, declare: Any, tmp_path: Path) -> None:
    graph, value = plain(), VALUES[what]
    fact = declare("anything", type(value))
    for node in graph.nodes:
        graph.set_fact(node, fact, value)
    graph.save(tmp_path / "g")
    loaded = Graph.load(tmp_path / "g")
    for node in loaded.nodes:
        found = loaded.fact(node, fact)
        assert type(found) is type(value)
        for a, b in zip(found, value, strict=True) if isinstance(value, tuple) else [(found, value)]:
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(b, Tensor) else a == b


def test_a_value_that_files_do_not_hold_is_named(declare: Any, tmp_path: Path) -> None:
    graph = plain()
    fact = declare("readers", set)
    graph.set_fact(graph.calls()[1], fact, {1, 2})
    with pytest.raises(InputError, match="the fact 'readers' of relu, a set, cannot be saved"):
        graph.save(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_to_be_saved_is_not(declare: Any, tmp_path: Path) -> None:
    graph = plain()
    fact = declare("readers", set, saved=False)
    graph.set_fact(graph.calls()[1], fact, {1, 2})
    graph.save(tmp_path / "g")
    loaded = Graph.load(tmp_path / "g")
    assert loaded.fact(loaded.calls()[1], fact) is None


def test_a_loose_key_is_not_dropped_in_silence(tmp_path: Path) -> None:
    graph = plain()
    graph.calls()[1].meta["mine"] = 1
    with pytest.raises(InputError, match="relu has 'mine' in its meta, which is no declared fact"):
        graph.save(tmp_path / "g")


def test_what_other_tools_left_in_a_model_is_no_fact_of_the_graph(tmp_path: Path) -> None:
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())
    for node in module.graph.nodes:
        node.meta["custom"], node.meta["theirs"] = {"a": 1}, object()
    graph = capture_once(module, torch.randn(2, 4))
    graph.save(tmp_path / "g")
    assert not any("theirs" in node.meta for node in graph.nodes)


def test_a_file_with_a_fact_that_nobody_declared_says_so(declare: Any, tmp_path: Path) -> None:
    graph = plain()
    graph.set_fact(graph.calls()[0], declare("theirs", int), 1)
    graph.save(tmp_path / "g")
    del facts.FACTS["theirs"]
    with pytest.raises(InputError, match="the fact 'theirs', which is not declared here"):
        Graph.load(tmp_path / "g")


def test_files_written_before_facts_were_declared_are_read(tmp_path: Path) -> None:
    graph = plain()
    graph.set_fact(graph.calls()[0], LEFT, "too small")
    graph.save(tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(tmp_path / "old", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "graph.json":
                data = json.loads(content) | {"version": 1, "dynamic_batch": True, "batched": [True]}
                del data["free_sizes"]  # which came with version 4
                del data["checkpoint"]  # which came with version 3
                data["nodes"][0]["meta"] = {"anything": [1, 2]}
                content = json.dumps(data).encode()
            old.writestr(name, content)
    loaded = Graph.load(tmp_path / "old")
    assert loaded.fact(loaded.calls()[0], LEFT) == "too small"
    assert "anything" not in loaded.nodes[0].meta
    loaded.save(tmp_path / "again")


# ---- Invalidation ---------------------------------------------------------------------------------------------------


def change(graph: Graph, node: Node, position: int, how: str, keeps: Any = ()) -> None:
    constant: Node = node.args[position]  # type: ignore[assignment]
    value = graph.tensor(constant) * 2
    if how == "set":
        graph.set_constant(node, position, value, keeps=keeps)
    else:
        graph.put_constant(constant, value, keeps=keeps)


@pytest.mark.parametrize("how", ["set", "put"])
@pytest.mark.parametrize("position", [1, 2])
def test_moments_hold_until_weight_or_bias_are_others(how: str, position: int) -> None:
    graph = plain()
    first, second = graph.calls(aten.linear.default)
    for node in (first, second):
        graph.set_fact(node, MOMENTS, moments())
        graph.set_fact(node, LEFT, "kept")
    change(graph, first, position, how, keeps=[MOMENTS])
    assert graph.fact(first, MOMENTS) is not None
    change(graph, first, position, how)
    assert graph.fact(first, MOMENTS) is None
    assert graph.fact(second, MOMENTS) is not None
    assert graph.fact(first, LEFT) == "kept"


def test_a_new_bias_makes_other_moments() -> None:
    graph = capture_once(nn.Linear(4, 6, bias=False).eval(), torch.randn(2, 4))
    (layer,) = graph.calls()
    graph.set_fact(layer, MOMENTS, moments())
    graph.set_bias(layer, torch.ones(6))
    assert graph.fact(layer, MOMENTS) is None


@pytest.mark.parametrize("how", ["set", "put"])
@pytest.mark.parametrize(
    ("part", "position", "forgotten"),
    [
        ("weight", 0, {"moments", "bias_corrected", "rounding_learned"}),
        ("weight", 1, {"bias_corrected", "rounding_learned", "refined weight"}),
        ("bias", 0, {"moments"}),
        ("input", 1, {"refined input"}),
    ],
)
def test_a_change_is_followed_through_quantizers(how: str, part: str, position: int, forgotten: set[str]) -> None:
    graph = quantized()
    layer = layers(graph)[0]
    known = {
        "moments": (layer.node, MOMENTS, moments()),
        "bias_corrected": (layer.node, BIAS_CORRECTED, True),
        "rounding_learned": (layer.node, ROUNDING_LEARNED, True),
        "refined weight": (layer.weight, REFINED, True),
        "refined input": (layer.input, REFINED, True),
    }
    for node, fact, value in known.values():
        graph.set_fact(node, fact, value)  # type: ignore[arg-type]
    quantizer = getattr(layer, part)
    assert is_quantizer(quantizer)
    change(graph, quantizer, position, how)
    assert {name for name, (node, fact, _) in known.items() if graph.fact(node, fact) is None} == forgotten


@pytest.mark.parametrize("how", ["set", "put"])
def test_a_replaced_constant_has_no_reference_unless_it_makes_up_for_rounding(how: str) -> None:
    graph = quantized()
    layer = layers(graph)[0]
    for fact, value in ((FLOAT_REFERENCE, torch.rand(6, 4)), (REFERENCE_LEFT_OUT, True)):
        graph.set_fact(layer.weight.args[0], fact, value)  # type: ignore[arg-type]
        graph.set_fact(layer.node, MOMENTS, moments())
        change(graph, layer.weight, 0, how, keeps=[FLOAT_REFERENCE, REFERENCE_LEFT_OUT])
        assert graph.fact(layer.weight.args[0], fact) is value  # type: ignore[arg-type]
        assert graph.fact(layer.node, MOMENTS) is not None  # of the float network, which is the same
        change(graph, layer.weight, 0, how)
        assert graph.fact(layer.weight.args[0], fact) is None  # type: ignore[arg-type]
        assert graph.fact(layer.node, MOMENTS) is None


# ---- Clones that share ----------------------------------------------------------------------------------------------


def test_a_clone_may_share_its_tensors_but_not_its_nodes() -> None:
    graph = quantized()
    copy, own = graph.clone(share_weights=True), graph.clone()
    assert str(copy) == str(graph)
    for (name, a), (_, b), (_, c) in zip(
        graph.module.state_dict(keep_vars=True).items(),
        copy.module.state_dict(keep_vars=True).items(),
        own.module.state_dict(keep_vars=True).items(),
        strict=True,
    ):
        assert a is b, name
        assert a.data_ptr() != c.data_ptr(), name
    assert not set(graph.nodes) & set(copy.nodes)


def test_rewriting_a_clone_that_shares_leaves_the_graph_as_it_was() -> None:
    graph, x = quantized(), torch.randn(5, 4)
    text, answers = str(graph), graph(x)
    copy = graph.clone(share_weights=True)
    for scale in {quantizer.args[1] for quantizer in quantizers(copy)}:
        if copy.is_constant(scale):  # those of biases follow
            copy.put_constant(scale, torch.full_like(copy.tensor(scale), 0.5))  # type: ignore[arg-type]
    change(copy, layers(copy)[0].weight, 0, "set")
    copy.refresh()
    assert not torch.equal(copy(x), answers)
    assert str(graph) == text
    assert torch.equal(graph(x), answers)
