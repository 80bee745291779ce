"""ONNX Runtime's own `quantize_static` with its defaults, audited and fixed: float regions, share in integer, time.

Blocks as in `blocks.py` and three networks of torchvision, with random weights, calibrated on random images. All run in turn
on one thread. Wanted: every block at least twice as fast as what `quantize_static` wrote.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # before the tests, which have blocks of their own
import blocks

import graphopt
from graphopt.ir import cost

NETWORKS = {"resnet18": 224, "mobilenet_v2": 224, "mobilenet_v3_large": 224}


def networks() -> Iterator[tuple[str, nn.Module, tuple[int, int]]]:
    import zoo

    models = zoo.torchvision().models
    for name, size in NETWORKS.items():
        torch.manual_seed(0)
        yield name, getattr(models, name)(weights=None), (3, size)


def quantize(source: Path, target: Path, batches: list[Tensor]) -> Path:
    """As anyone would: QDQ, with all defaults, on the exported file as it is."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_suffix(".prepared.onnx")
    with common.quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        name = common.session(prepared).get_inputs()[0].name
        quantize_static(str(prepared), str(target), common.Reader(name, batches))
    return target


def row(name: str, model: nn.Module, channels: int, size: int, folder: Path, rounds: int) -> dict[str, Any]:
    common.randomise(model)
    batches = [batch[:1] for batch in common.images(64, size, channels, seed=1)]
    example = batches[0]
    original = common.export_float(model, example, folder / "float.onnx")
    static = quantize(original, folder / "static.onnx", batches)
    found = graphopt.audit(static, "x86")
    fixed = found.fix(folder / "fixed.onnx", example=example, measure=False)
    paths = {"float": original, "static": static, "fixed": fixed.path}
    feed = example.numpy()
    taken = cost.timings(
        {k: common.runner(p, feed) for k, p in paths.items()}, repeats=rounds, warmup=10, budget_seconds=20
    )
    ((largest, unit),) = fixed.difference.values()
    truth = common.answers(original, torch.cat(batches))
    fidelity = {k: cost.sqnr(truth, common.answers(paths[k], torch.cat(batches))) for k in ("static", "fixed")}
    reasons = Counter(reason.rule for region in found.float_regions for reason in region.reasons)
    return {
        "model": name,
        "float_regions": len(found.float_regions),
        "left": len(fixed.after.float_regions),
        "why": common.joined([f"{n} {rule}" for rule, n in reasons.items()]),
        "integer %": 100 * found.share,
        "fixed %": 100 * fixed.after.share,
        "float ms": taken.median("float"),
        "static ms": taken.median("static"),
        "fixed ms": taken.median("fixed"),
        "times faster": taken.speedup("static", "fixed"),
        "largest difference": f"{largest:.2g} {unit}",
        "static SQNR dB": fidelity["static"],
        "fixed SQNR dB": fidelity["fixed"],
    }


def main() -> None:
    options = common.arguments(__doc__, rounds=200, only="")
    torch.set_num_threads(1)
    models = [(name, model, shape) for name, (model, shape) in blocks.blocks().items()] + list(networks())
    found: common.Rows = []
    for name, model, (channels, size) in models:
        if options.only in name:
            common.log(name)
            torch.manual_seed(0)
            with common.workplace() as folder:
                found.append(row(name, model, channels, size, folder, options.rounds))
    common.finish({"quantize_static with its defaults, and fixed; x86, one image, one thread": found}, options.json)


if __name__ == "__main__":
    main()
