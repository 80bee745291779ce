"""Lower published networks with random weights for x86, run them, and hold the runtime against the simulated graph.

Every network is captured, optimized with made-up images, lowered and run on four images it was not calibrated on. `integer
MACs`: of convolutions and linear layers, as the runtime executes them. `steps`: difference between the outputs of artifact and
simulated graph, in steps of an 8-bit grid over the outputs' range. `s`: seconds of `optimize`, capture included.

Wanted: no failure; where the share is below 100 %, the layers in float are those without an integer kernel.
"""

from __future__ import annotations

import time
from collections import Counter

import common
import torch
import torch.utils._pytree as pytree
import zoo
from torch import Tensor

import graphopt
from graphopt.backends.onnxruntime.audit import FLOAT_WORK

SIZE = 96  # pixels; much is too large for what is asked here
SIZES = {"timm/deit_tiny_patch16_224": 224, "timm/mixer_s32_224": 224}  # those that take no other
MODELS = [
    *(
        f"torchvision/{name}"
        for name in (
            "alexnet", "resnet18", "resnet50", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
            "mobilenet_v3_large", "mnasnet1_0", "squeezenet1_1", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf",
            "resnext50_32x4d", "convnext_tiny", "swin_t",
        )
    ),
    *(
        f"timm/{name}"
        for name in (
            "repvgg_a0", "ghostnet_100", "lcnet_050", "mobileone_s0", "dla34", "rexnet_100", "hardcorenas_a", "vovnet39a",
            "poolformer_s12", "deit_tiny_patch16_224", "mixer_s32_224",
        )
    ),
]  # fmt: skip


def steps(found: object, expected: object) -> Tensor:
    """Differences of all outputs, in steps of an 8-bit grid over the range of each."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return torch.cat([((a - b).abs() / (b.max() - b.min()).clamp(min=1e-30) * 255).flatten() for a, b in pairs])


def row(name: str) -> dict[str, object]:
    model, _, _ = zoo.make(name)
    common.randomise(model)
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():  # some heads start at zero, where every answer is the same
            torch.nn.init.normal_(weight, std=0.02)
    size = SIZES.get(name, SIZE)
    batches = list(common.images(8, size, batch=4))
    start = time.perf_counter()
    artifact, report, graph = graphopt.optimize(model, batches[0][:1], target="x86", calibration=batches, measure=False)
    seconds = time.perf_counter() - start
    x = next(iter(common.images(4, size, batch=4, seed=1)))
    with torch.no_grad():
        apart = [steps(artifact(part), graph(part)) for part in (x.split(len(x) if graph.dynamic_batch else 1))]
    layers = Counter(o.operator for o in report.float_operators if o.operator in FLOAT_WORK)
    others = Counter(o.operator for o in report.float_operators if o.operator not in FLOAT_WORK)
    differences = torch.cat(apart)
    return {
        "network": name, "pixels": size, "integer MACs %": 100 * (report.integer_macs or 0.0), "float layers": counted(layers),
        "other float operators": counted(others), "largest steps": float(differences.max()),
        "median steps": float(differences.median()), "s": seconds,
    }  # fmt: skip


def counted(kinds: Counter[str]) -> str:
    return common.joined([f"{n} {kind}" if n > 1 else kind for kind, n in sorted(kinds.items())])


def main() -> None:
    options = common.arguments(__doc__, models=MODELS)
    torch.set_num_threads(1)
    found: common.Rows = []
    for name in options.models:
        common.log(name)
        try:
            found.append(row(name))
        except Exception as error:
            found.append({"network": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"})
        print(found[-1], flush=True)
    common.finish({f"Lowering: {len(found)} networks, random weights, x86": found}, options.json)


if __name__ == "__main__":
    main()
