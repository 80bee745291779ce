"""What must hold for every network: each check answers None, or an outcome that says what is wrong or refused.

    outcome = CHECKS["capture"](network)

A check of what capture refuses answers None: the refusal is the outcome of `capture` alone.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.utils._pytree as pytree
from blocks import target_of
from exactness import Reference, quarter
from noise import jumps
from outcomes import (
    NOISE,
    TOLERANCE,
    Check,
    SkippedError,
    WarningError,
    WrongError,
    answers,
    checked,
    compare,
    differs,
    graph_of,
    other_inputs,
)
from programs import Built, Network
from torch import Tensor

import graphopt
from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.analysis.choices import extract
from graphopt.artifacts.artifact import Artifact
from graphopt.backends.onnxruntime import lower as lower_onnx
from graphopt.compiler.recipes import recipe
from graphopt.ir import cost
from graphopt.ir.choices import assign, choices
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.passes.cleanup.decompose_activations import DecomposeActivations
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.elastic import Elastic
from graphopt.passes.equalization.absorb_bias import AbsorbHighBias
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.factorization import SVD, ChannelWise, Separable, Tucker
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.site import sites
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import find, machine_here
from graphopt.utils.errors import InputError

WORST_DB = 6.0  # of 8-bit answers against torch; less is a warning


# ---- Float ----------------------------------------------------------------------------------------------------------


def _capture(network: Network, built: Built) -> None:
    before = copy.deepcopy(built.model.state_dict())
    graph = Graph.capture(built.model, built.inputs, dynamic_batch=network.free_batch)
    for inputs in (built.inputs, other_inputs(graph, built.inputs)):
        compare(network, built, answers(graph, inputs), inputs, f"captured, on {[list(x.shape) for x in inputs]}")
    if any(not torch.equal(v, before[k]) for k, v in built.model.state_dict().items()):
        raise WrongError("capture changed the caller's weights")


def _saved(network: Network, built: Built) -> None:
    graph = graph_of(network, built)
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder) / "graph.pt2")
        again = Graph.load(Path(folder) / "graph.pt2")
    if str(again) != str(graph):
        raise WrongError("a saved graph has another text")
    if difference := differs(answers(again, built.inputs), answers(graph, built.inputs), 0.0):
        raise WrongError(f"a saved graph answers otherwise: {difference}")


EXACT: list[Pass] = [
    Simplify(), FoldBatchNorm(), FoldBatchNorm(depthwise=True), FoldConstantChannels(),
    DecomposeActivations(("hardswish", "silu")), EqualizeChannels(), EqualizeChannels(clips=False),
]  # fmt: skip
SEQUENCE: list[Pass] = [
    Simplify(),
    FoldBatchNorm(),
    FoldConstantChannels(),
    EqualizeChannels(),
    DecomposeActivations(("hardswish", "silu")),
    Simplify(),
]


def _passes(network: Network, built: Built) -> None:
    """Each alone on the graph as captured and with batch norms folded, and all in sequence."""
    graph = graph_of(network, built)
    folded = graph.clone()
    run([Simplify(), FoldBatchNorm()], folded, verify=False)
    for start in (graph, folded):
        for transform in EXACT:
            _apply(network, built, start.clone(), [transform])
    _apply(network, built, graph.clone(), SEQUENCE)
    run([*SEQUENCE, AbsorbHighBias()], graph, verify=False)
    answers(graph, built.inputs)


def _apply(network: Network, built: Built, graph: Graph, passes: list[Pass]) -> None:
    run(passes, graph, verify=False)
    text = str(graph)
    for inputs in (built.inputs, other_inputs(graph, built.inputs)):
        compare(network, built, answers(graph, inputs), inputs, ", ".join(map(str, passes)))
    if run(passes[-1:], graph, verify=False)[0].changes or str(graph) != text:
        raise WrongError(f"{passes[-1]} finds something to do when it runs again")


def _onnx(network: Network, built: Built) -> None:
    graph = graph_of(network, built)
    _float(network, built, graph, lower_onnx(graph, find("x86")), "ONNX Runtime")


def _tvm(network: Network, built: Built) -> None:
    from graphopt.backends.tvm import lower

    graph = graph_of(network, built)
    _float(network, built, graph, lower(graph, find("tvm-x86")), "TVM")


def _float(network: Network, built: Built, graph: Graph, artifact: Artifact, what: str) -> None:
    for inputs in (built.inputs, other_inputs(graph, built.inputs)):
        compare(network, built, artifact(*inputs), inputs, f"{what}, on {[list(x.shape) for x in inputs]}")


# ---- Integers -------------------------------------------------------------------------------------------------------


def _quantized(name: str) -> Callable[[Network, Built], None]:
    def body(network: Network, built: Built) -> None:
        graph = graph_of(network, built)
        target = target_of(name)
        batches = [[*built.inputs], [x * 0.8 if x.is_floating_point() else x for x in built.inputs]]
        passes = [
            Quantize(target, batches, estimator="minmax") if isinstance(p, Quantize) else p
            for p in recipe(target, batches)
        ]
        run(passes, graph, verify=False)
        if not any("fake_quantize" in str(n.target) for n in graph.calls()):
            raise SkippedError
        if name.startswith("tvm"):
            from graphopt.backends.tvm import lower
        else:
            lower = lower_onnx
        artifact = lower(graph, target)
        machine = None if name.startswith("tvm") else machine_here()
        simulation = graphopt.simulate(graph, target, machine=machine)
        inputs = other_inputs(graph, built.inputs)
        lines = [line for line in simulation.mismatches(artifact, *inputs) if line.differing]
        lines = [line for line in lines if line.kernel != "quantize" or line.largest > 1]
        if all(line.kernel == "quantize" for line in lines) and jumps(graph, inputs):
            lines = []
        if lines:
            raise WrongError(f"{name} artifact and simulation: {'; '.join(map(str, lines))}")
        _meant(name, graph, artifact, inputs)
        _nearby(network, built, artifact, inputs)

    return body


def _meant(name: str, graph: Graph, artifact: Artifact, inputs: tuple[Tensor, ...]) -> None:
    """The artifact's integers are those of the simulated graph but for what steps of rounding add up to."""
    pairs = [
        (a, b)
        for a, b in zip(*(pytree.tree_leaves(answers(each, inputs)) for each in (graph, artifact)), strict=True)
        if a.is_floating_point() and bool(a.isfinite().all()) and bool(a.any())
    ]
    worst = min((cost.sqnr([a], [b]) for a, b in pairs), default=WORST_DB)
    if worst < WORST_DB and not jumps(graph, inputs):
        raise WrongError(f"{name} artifact and simulated graph: only {worst:.1f} dB apart")


def _nearby(network: Network, built: Built, artifact: Artifact, inputs: tuple[Tensor, ...]) -> None:
    expected, found = answers(built.model, inputs), artifact(*inputs)
    ours, theirs = (pytree.tree_leaves(answer) for answer in (found, expected))
    if [(t.dtype, t.shape) for t in ours] != [(t.dtype, t.shape) for t in theirs]:
        raise WrongError(f"the artifact answers {[(t.dtype, t.shape) for t in ours]}")
    pairs = [(a, b) for a, b in zip(theirs, ours, strict=True) if a.is_floating_point() and bool(a.any())]
    if pairs and (worst := min(cost.sqnr([a], [b]) for a, b in pairs)) < WORST_DB:
        raise WarningError(f"the signal is {worst:.1f} dB over the noise of quantization")


# ---- Fewer channels, factors ----------------------------------------------------------------------------------------


def _pruned(network: Network, built: Built) -> None:
    graph = graph_of(network, built)
    gather_shuffles(graph)
    trace = Trace(graph)
    chosen = quarter(groups(graph, trace))
    if not chosen:
        raise SkippedError
    reference = Reference(graph, trace, chosen)
    try:
        remove(graph, trace, chosen)
    except ValueError as error:
        if "nothing would be left" in str(error):
            raise SkippedError from None
        raise
    graph.refresh()
    expected = pytree.tree_leaves(answers(reference, built.inputs))
    if difference := differs(pytree.tree_leaves(answers(graph, built.inputs)), expected):
        noisy = [x + NOISE * x.abs().max() * torch.randn_like(x) if x.is_floating_point() else x for x in built.inputs]
        if not differs(pytree.tree_leaves(answers(reference, tuple(noisy))), expected, TOLERANCE / 3):
            raise WrongError(f"without {[(g.name, units) for g, units in chosen]}: {difference}")


def _elastic(network: Network, built: Built) -> None:
    """Whatever is chosen of an elastic network, what is extracted answers as it does."""
    graph = graph_of(network, built)
    try:
        Elastic(widths=(0.3, 0.6), kernels=(1, 3))(graph)
    except InputError as error:
        if "nothing can be made elastic" in str(error):
            raise SkippedError from None
        raise
    drawn = random.Random(0)
    for _ in range(3):
        chosen = tuple(drawn.randrange(len(choice)) for choice in choices(graph))
        assign(graph, chosen)
        expected = pytree.tree_leaves(answers(graph, built.inputs))
        try:
            small = extract(graph)
        except InputError as error:
            if "nothing would be left" in str(error):
                continue
            raise
        if difference := differs(pytree.tree_leaves(answers(small, built.inputs)), expected):
            raise WrongError(f"with the options {chosen}: {difference}")


METHODS: tuple[Method, ...] = (SVD(), ChannelWise(), Separable(), Tucker())


def _factorized(network: Network, built: Built) -> None:
    """Every layer at its full rank, with each method that takes it."""
    graph = graph_of(network, built)
    found = list(sites(graph))
    for method in METHODS:
        ranks = {s.name: method.full(s.layer) for s in found if not any(map(method.refuses, s.layers))}
        if ranks:
            one = graph.clone()
            run([replace(method, layers={**ranks, "*": None})], one, verify=False)
            compare(network, built, answers(one, built.inputs), built.inputs, f"{type(method).__name__} of {ranks}")


def _followed(body: Callable[[Network, Built], None]) -> Callable[[Network, Built], None]:
    """Where a refusal advises a fixed batch, that has to help; the refusal stays the outcome."""

    def follow(network: Network, built: Built) -> None:
        try:
            body(network, built)
        except InputError as error:
            if network.free_batch and "dynamic_batch=False" in str(error):
                body(replace(network, free_batch=False), built)
            raise

    return follow


CHECKS: dict[str, Check] = {
    name: checked(name, body)
    for name, body in {
        "capture": _capture, "saved": _saved, "passes": _passes, "onnx": _onnx, "pruned": _pruned, "factorized": _factorized,
        "elastic": _elastic,
        "x86": _quantized("x86"), "arm": _quantized("arm"), "tvm": _followed(_tvm), "tvm-x86": _followed(_quantized("tvm-x86")),
    }.items()
}  # fmt: skip
