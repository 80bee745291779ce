"""Sixty random networks through everything; and what makes, checks and shrinks them. See `networks.py`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from checks import CHECKS
from generate import generate
from kinds import KINDS
from networks import run as try_all
from networks import summary, table, try_one
from noise import jumps
from outcomes import Outcome, answers, checked, compare, graph_of
from programs import Built, Network, Noisy
from refusals import unclear
from rewriting import apply, assert_close
from shrink import shrink
from torch import Tensor

from graphopt.compiler.recipes import recipe
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passmanager.runner import run
from graphopt.targets import architecture, find

SEEDS = range(60)
EACH = ("capture", "saved", "passes", "pruned", "factorized")
TVM = importlib.util.find_spec("tvm") is not None and architecture() == "x86_64"
KNOWN: dict[tuple[int, str], str] = {}  # faults to be mended: seed and check, and a word of the message
SMALL = Network({"x0": "torch.randn(2, 3, 7)"}, {"p0": "nn.Conv1d(3, 4, 3)"}, {"v0": "self.p0(x0)"}, "[v0, (v0,)]")


def deployed(seed: int) -> list[str]:
    """Those that take seconds, for a few seeds each."""
    turns = {"onnx": (3, 0), "x86": (6, 1), "arm": (6, 4), **({"tvm": (15, 0), "tvm-x86": (20, 1)} if TVM else {})}
    return [name for name, (every, start) in turns.items() if seed % every == start]


@pytest.mark.thorough
@pytest.mark.parametrize("seed", SEEDS)
def test_capture_and_exact_passes_answer_what_torch_answers(seed: int) -> None:
    assert [line for line in try_one(seed, EACH) if line["kind"] in ("wrong", "foreign", "unclear")] == []


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if deployed(seed)])
def test_artifacts_answer_what_torch_and_the_simulation_answer(seed: int) -> None:
    faults = [line for line in try_one(seed, deployed(seed)) if line["kind"] in ("wrong", "foreign", "unclear")]
    known = {check: word for (of, check), word in KNOWN.items() if of == seed}
    assert [line["check"] for line in faults] == [*known]  # what was mended is taken off the list
    assert all(known[line["check"]] in line["message"] for line in faults)


@pytest.mark.parametrize(
    ("step", "jumping"), [("torch.floor(v0 / v0.mean(-1, keepdim=True))", True), ("v0.relu()", False)]
)
def test_where_rounding_decides_is_told_from_where_it_does_not(step: str, jumping: bool) -> None:
    steps = {"v0": "self.p0(x0)", "v1": step, "v2": "self.p1(v1)"}
    network = Network(
        {"x0": "torch.randn(2, 3, 1)"}, {"p0": "nn.Conv1d(3, 4, 1)", "p1": "nn.Conv1d(4, 4, 1)"}, steps, "v2"
    )
    built = network.build()
    graph = graph_of(network, built)
    run(recipe(find("x86"), [[*built.inputs]]), graph, verify=False)
    assert jumps(graph, built.inputs) is jumping  # a row of one number is one time its mean, or a little less


# ---- The generator --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_seed_makes_the_same_network_again_and_another_another() -> None:
    texts = [generate(seed).text() for seed in range(20)]
    assert texts == [generate(seed).text() for seed in range(20)]
    assert len(set(texts)) == 20


def test_the_callers_random_numbers_stay() -> None:
    before = torch.random.get_rng_state()
    generate(3).build()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operator_is_reached(kind: str) -> None:
    kinds = {kind: KINDS[kind]} | ({"linear": KINDS["linear"]} if kind == "again" else {})
    found = (network for seed in range(100) if (network := generate(seed, kinds)).steps)
    network = next(found)
    assert network.operators or "product" in kind
    model, inputs = network.build()
    assert pytree.tree_leaves(model(*inputs))


def test_the_text_alone_makes_the_same_model() -> None:
    for seed in range(5):
        network, scope = generate(seed), dict[str, Any]()
        exec(network.text(), scope)
        model, inputs = network.build()
        assert_close(scope["model"](*scope["inputs"]), model(*inputs), 0.0)


@pytest.mark.thorough
def test_networks_have_what_they_are_to_have() -> None:
    found = [generate(seed) for seed in range(150)]
    assert any(len(n.inputs) > 1 for n in found)
    assert any("(" in n.returned and "[" in n.returned for n in found)
    assert any(f"self.{part}(" in a and f"self.{part}(" in b for n in found for part in n.parts
               for a, b in zip([*n.steps.values()], [*n.steps.values()][1:], strict=False))  # fmt: skip
    assert {n.free_batch for n in found} == {False, True}
    assert sum(len(n.steps) > 4 for n in found) > 50


def test_noise_moves_what_it_should() -> None:
    model, inputs = SMALL.build()
    plain = [t.detach() for t in pytree.tree_leaves(model(*inputs))]
    assert_close(Noisy(0.0)(SMALL, model, inputs), plain, 0.0)
    moved = pytree.tree_leaves(Noisy(1e-3)(SMALL, model, inputs))
    assert 1e-5 < float((moved[0] - plain[0]).abs().max() / plain[0].abs().max()) < 1e-1


def test_noise_is_that_of_the_operators_a_step_is_made_of() -> None:
    network = Network({"x0": "torch.linspace(0.01, 0.05, 5)"}, {}, {"v0": "F.tanhshrink(x0)"}, "v0")  # x^3 / 3
    model, (x,) = network.build()
    right = model(x)
    moved = [float((Noisy(1e-6, seed)(network, model, [x]) - right).abs().max() / right.max()) for seed in range(3)]
    assert max(moved) > 1e-4  # a step of 2e-9 of tanh(0.05), which differs by 4e-5 from 0.05
    masked = Network({"x0": "torch.randn(2, 3)"}, {}, {"v0": "x0.masked_fill(x0 > 0, float('-inf')).exp()"}, "v0")
    model, (x,) = masked.build()
    assert_close(Noisy(1e-6)(masked, model, [x]), model(x), 1e-4)


# ---- Faults, and what is made of them -------------------------------------------------------------------------------


def folded(network: Network, built: Built) -> None:
    graph = graph_of(network, built)
    apply(FoldBatchNorm(), graph)
    compare(network, built, answers(graph, built.inputs), built.inputs, "folded")


@pytest.mark.thorough
def test_a_planted_fault_is_found_and_shrunk_to_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = FoldBatchNorm.fold_back

    def careless(self: Any, graph: Any, norm: Any, layer: Any, scale: Tensor, shift: Tensor) -> None:
        fold(self, graph, norm, layer, scale.abs(), shift)

    monkeypatch.setattr(FoldBatchNorm, "fold_back", careless)
    fold_check = checked("folded", folded)
    kinds = {kind: KINDS[kind] for kind in ("convolution", "batch norm", "activation", "arithmetic", "average pool")}
    network = next(n for seed in range(20) if fold_check(n := generate(seed, kinds)))
    small = shrink(network, lambda n: outcome.kind if (outcome := fold_check(n)) else None)
    assert len(small.steps) == len(small.parts) == 2 < len(network.steps)
    assert "BatchNorm" in small.text()
    monkeypatch.undo()
    assert fold_check(small) is None


def test_shrinking_keeps_only_what_fails() -> None:
    def fails(network: Network) -> str | None:
        return "avg_pool2d" if any("F.avg_pool2d" in step for step in network.steps.values()) else None

    small = shrink(next(n for n in map(generate, range(500)) if fails(n) and len(n.steps) > 4), fails)
    (step,) = small.steps.values()
    assert step.startswith("F.avg_pool2d(")
    assert "=" not in step
    assert not small.parts
    with pytest.raises(ValueError, match="does not fail"):
        shrink(SMALL, fails)


@pytest.mark.parametrize(
    ("message", "lacks"),
    [
        ("p0: Conv1d has no kernel; leave it in float", ""),
        ("p0: Conv1d has no kernel", "what to do"),
        ("it has no kernel; leave it in float", "names no"),
        ("p0: no kernel;\nleave it in float", "more than one line"),
        ("p0: no kernel; leave it in float" * 30, "long"),
    ],
)
def test_a_refusal_names_something_and_a_remedy(message: str, lacks: str) -> None:
    found = unclear(message, SMALL)
    assert lacks in found if lacks else not found


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def check(network: Network) -> Outcome | None:
        calls.append(len(calls))
        return Outcome("odd", "wrong", "output 0 moved by 3e-2") if len(calls) % 2 else None

    monkeypatch.setitem(CHECKS, "odd", check)
    results = tmp_path / "results.jsonl"
    assert len(try_all(range(3), ["odd"], results)) == 3
    lines = try_all(range(5), ["odd"], results)
    assert len(calls) == len(lines) == len(results.read_text().splitlines()) == 5
    assert json.loads(results.read_text().splitlines()[0]) == {
        "seed": 0, "check": "odd", "kind": "wrong", "message": "output 0 moved by 3e-2",
    }  # fmt: skip
    found = summary(lines)
    assert found["networks"] == 5
    assert found["checks"]["odd"]["wrong"] == found["messages"][0]["count"] == 3
    assert table(found).splitlines()[1].split() == ["odd", "2", "0", "0", "3", "0", "0"]
