"""Remove a quarter of the channels of every prunable group of published networks, and see whether all of it holds.

    python benchmarks/prune_zoo.py                              every torchvision classifier up to 100 M parameters, then timm
    python benchmarks/prune_zoo.py --names torchvision/resnet50 timm/xcit_nano_12_p16_224
    python benchmarks/prune_zoo.py --names torchvision --optimize 0 --json prune.json

Per network: groups that can lose units of all groups; parameters left; the largest difference to the network whose removed
units are zeroed, relative to the largest output, and what was compared with (`zeros`, or `survivors` where a normalisation
takes statistics over removed channels: there they are taken over those that survive); whether training runs, a gradient for
every parameter; whether the float network lowers and answers the same within 1e-4; for every `--optimize`th network whether
the int8 job goes through; CPU seconds of finding the groups and of removing.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
import torch.utils._pytree as pytree
from common import Rows, arguments, finish, log, quiet
from torch import Tensor

import zoo  # isort: skip
from exactness import EXACT, Reference, difference, quarter  # isort: skip
from zoo_prune import FIXED_SIZE, TIMM_FAMILIES, classifiers  # isort: skip

import graphopt
from graphopt import targets
from graphopt.analysis.channels.groups import Group, groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.backends.onnxruntime import lower
from graphopt.ir.graph import Graph

ONNX = 1e-4  # of the largest output
DRAWS = 5  # of the units to remove, where a draw leaves a layer without any


def randomise(graph: Graph, seed: int = 0) -> None:
    """Vectors (batch norms, scales, biases) as training would leave them, and so whatever is constant: mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [
        b for _, b in graph.named_buffers() if b.dim() == 1
    ]  # others are tables of numbers, like shifted windows' masks
    for tensor in [*graph.parameters(), *vectors]:
        if not tensor.is_floating_point():
            continue
        if tensor.dim() < 2:
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5
        elif bool((tensor == tensor.flatten()[0]).all()):
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1


def sample(name: str) -> tuple[Graph, Tensor]:
    """A captured network with a batch of two of the smallest sensible input."""
    sizes = (64, 96, 128) if not any(part in name for part in FIXED_SIZE) else ()
    for size in (*sizes, 0):
        model, args, _ = zoo.make(name)
        default = args[0]
        torch.manual_seed(1)
        images = torch.randn(2, 3, size or default.shape[-2], size or default.shape[-1])
        try:
            with quiet(), torch.no_grad():
                model(images)
            with quiet():
                return Graph.capture(model, images), images
        except Exception:
            if not size:
                raise
    raise AssertionError


def trains(graph: Graph, original: set[str], images: Tensor) -> str:
    """Backward in training mode: every parameter that had a gradient has one."""
    graph.train()
    try:
        result = graph(images)
        sum(t.square().mean() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)).backward()  # type: ignore[union-attr]
    finally:
        graph.eval()
    with_gradient = {n for n, p in graph.named_parameters() if p.grad is not None and p.grad.shape == p.shape}
    for p in graph.parameters():
        p.grad = None
    missing = sorted({n for n, _ in graph.named_parameters()} & original - with_gradient)
    return f"no gradient: {missing[0]}" if missing else "yes"


def differentiable(graph: Graph) -> set[str]:
    """Parameters that the output depends on."""
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    return {n for n, p in graph.named_parameters() if p.requires_grad and n in read}


def lowers(graph: Graph, images: Tensor) -> str:
    with quiet():
        artifact = lower(graph, targets.find("x86"))
        batch = images if graph.dynamic_batch else images[: len(graph.example.tensors()[0])]
        with torch.no_grad():
            apart = difference(graph(batch), pytree.tree_map(torch.as_tensor, artifact(batch)))
    return "yes" if apart < ONNX else f"differs by {apart:.1e}"


def integers(graph: Graph, images: Tensor) -> str:
    """The int8 job with made-up calibration data."""
    with quiet():
        done = graphopt.optimize(graph, target="x86", calibration=images, measure=False, estimator="minmax")
        result = [torch.as_tensor(t) for t in pytree.tree_leaves(done.artifact(images))]
    return "yes" if all(bool(t.isfinite().all()) for t in result) else "not finite"


def attempt(test: Any, *args: Any) -> str:
    try:
        return str(test(*args))
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def row(name: str, *, run: bool, int8: bool) -> tuple[dict[str, Any], list[Group]]:
    graph, images = sample(name)
    randomise(graph)
    graph.eval()
    start = time.process_time()
    gather_shuffles(graph)
    trace = Trace(graph)
    found = groups(graph, trace)
    tracing = time.process_time() - start
    before = sum(p.numel() for p in graph.parameters())
    needed = differentiable(graph)
    for seed in range(DRAWS):
        chosen = quarter(found, seed=seed)
        reference = Reference(graph, trace, chosen)
        start = time.process_time()
        try:
            remove(graph, trace, chosen)
            break
        except ValueError as error:  # groups that meet in a layer happened to lose all of it; nothing was changed
            if "nothing would be left" not in str(error) or seed == DRAWS - 1:
                raise
    removing = time.process_time() - start
    with torch.no_grad():
        apart = difference(reference(images), graph(images))
    figures: dict[str, Any] = {
        "network": name,
        "input": images.shape[-1],
        "groups": f"{len(chosen)}/{len(found)}",
        "parameters left": round(sum(p.numel() for p in graph.parameters()) / before, 3),
        "difference": apart,
        "compared with": "survivors" if reference.surviving else "zeros",
    }
    if not apart < EXACT:  # rounding or mistake? in double precision rounding vanishes
        figures["in double"] = attempt(_double, reference, graph, images)
    del reference
    if run:
        figures["trains"] = attempt(trains, graph, needed, images)
        figures["lowers"] = attempt(lowers, graph, images)
    if int8:
        figures["int8"] = attempt(integers, graph, images)
    figures |= {"operators": len(graph.calls()), "trace s": round(tracing, 2), "remove s": round(removing, 2)}
    return figures, found


def _double(reference: Reference, graph: Graph, images: Tensor) -> str:
    for each in (reference.graph, graph):
        each.module.double()
    with torch.no_grad():
        apart = difference(reference(images.double()), graph.module(images.double()))
    graph.module.float()
    return f"{apart:.1e}"


def passed(figures: dict[str, Any]) -> bool:
    tests = [figures.get(k, "yes") for k in ("trains", "lowers", "int8")]
    return figures.get("difference", 1.0) < EXACT and all(t == "yes" for t in tests)


def main() -> None:
    options = arguments(__doc__, names=["torchvision", "timm"], optimize=10, run=1)
    torch.set_num_threads(1)
    every = [*(f"torchvision/{n}" for n in classifiers()), *(f"timm/{n}" for n in TIMM_FAMILIES)]
    names = [
        n
        for wanted in options.names
        for n in ([wanted] if wanted in every else [e for e in every if wanted in e] or [wanted])
    ]
    rows: Rows = []
    fixed: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        try:
            figures, found = row(
                name, run=bool(options.run), int8=bool(options.optimize) and number % options.optimize == 0
            )
        except Exception as error:
            figures, found = {"network": name, "trains": f"{type(error).__name__}: {str(error)[:300]}"}, []
        for group in found:
            if group.fixed.all():
                entry = fixed.setdefault(
                    _kind(group.why), {"fixed by": _kind(group.why), "groups": 0, "for instance": name}
                )
                entry["groups"] += 1
        rows.append(figures)
        log(f"{number + 1}/{len(names)} {'ok  ' if passed(figures) else 'FAIL'} {figures}")
        gc.collect()
    good = [figures for figures in rows if passed(figures)]
    summary = [
        {"networks": kind, "all": len(mine), "pass": sum(f in good for f in mine)}
        for kind in ("torchvision", "timm")
        if (mine := [f for f in rows if f["network"].startswith(kind)])
    ]
    order = sorted(fixed.values(), key=lambda e: -e["groups"])
    finish({"A quarter of every group": rows, "Groups that are fixed": order, "Networks": summary}, options.json)


def _kind(why: str) -> str:
    """A reason without the number of the call."""
    return " ".join(w.rstrip("0123456789_,") if i == 0 else w for i, w in enumerate(why.split()))


if __name__ == "__main__":
    main()
