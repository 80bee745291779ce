"""A graph call by call, of every small network: nothing is missing, nothing twice, and it can be drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
from blocks import BLOCKS, images, model_of
from rewriting import randomised
from small_models import MODELS
from torch import nn

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.drawing import draw
from graphopt.artifacts.network import Call
from graphopt.artifacts.report import Report
from graphopt.evaluation.network import network
from graphopt.evaluation.sensitivity import analyze
from graphopt.formats import Format
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup import FoldBatchNorm, Simplify
from graphopt.passes.quantization import Quantize, QuantizeWeights
from graphopt.passmanager import run
from graphopt.targets import find
from graphopt.utils.errors import InputError


def sound(graph: Graph, found: list[Call]) -> None:
    names = [call.name for call in found]
    assert all(0 <= read < number for number, call in enumerate(found) for read in call.reads)
    assert [call.name for call in found if call.operator == "input"] == list(graph.input_names)
    assert sum(call.macs for call in found) == cost.macs(graph)
    root = ElementTree.fromstring(draw(found))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) == len(names)
    data = {"model": "m", "target": "t", "network": [vars(call) for call in found]}
    assert Report.from_dict(data).network == [Call(**{**vars(c), "reads": tuple(c.reads)}) for c in found]


@pytest.mark.parametrize("name", [*BLOCKS, *MODELS])
def test_every_network_is_listed_and_drawn_in_float_and_quantized(name: str) -> None:
    torch.manual_seed(1)
    model = (model_of(name) if name in BLOCKS else randomised(MODELS[name]())).eval()
    graph = Graph.capture(model, images(2))
    plain = network(graph)
    sound(graph, plain)
    assert all(call.bits == "" for call in plain)
    run([Simplify(), FoldBatchNorm()], graph)
    try:
        run([Quantize(find("x86"), [[images(2)]], estimator="minmax")], graph)
    except InputError:  # nothing of it is a layer
        return
    found = network(graph)
    sound(graph, found)
    assert any(call.bits for call in found)
    report = Report("m", "t", network=found).include(analyze(graph, images(2)))
    known = {call.name for call in report.network if call.sqnr_db is not None}
    assert known
    assert {call.name for call in report.network if call.weight_bits is not None} <= known


def test_weights_in_blocks_have_bits_and_values_do_not() -> None:
    graph = Graph.capture(nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)).eval(), torch.randn(2, 64))
    run([QuantizeWeights(bits=4)], graph)
    found = network(graph, Audit(weight_only=["0", "2"]))
    sound(graph, found)
    assert [(call.name, call.bits, call.arithmetic) for call in found if call.weight_bits] == [
        ("0", "4 / float", "weights"), ("2", "4 / float", "weights"),
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [2, 7, 8, 16])
def test_bits_are_those_of_the_format(bits: int) -> None:
    graph = Graph.capture(nn.Conv2d(3, 4, 1).eval(), images(2))
    for symmetric in (True, False):
        formats = {"weights": Format(bits), "activations": Format(bits, signed=False, symmetric=symmetric)}
        copy = graph.clone()
        run([Quantize(find("tvm-x86"), [[images(2)]], **formats)], copy)
        assert {call.bits for call in network(copy)} <= {f"{bits} / {bits}", f"- / {bits}", f"{bits} / float"}
