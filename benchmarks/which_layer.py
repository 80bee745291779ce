"""Which layers cost a network with 4-bit weights its accuracy, and what it gains when only those get 8 bits.

Every weight has its nearest code, so that there is something to be found.

The network is ResNet-20 on CIFAR-10; layers are ranked on 512 training images, accuracy is that of the artifact on test images.
As a control, as many of the layers ranked last get 8 bits.
"""

from __future__ import annotations

from typing import Any

import common
import torch

import graphopt
from graphopt.formats import Format
from graphopt.passes.quantization import LayerFormat
from graphopt.targets import find


def main() -> None:
    options = common.arguments(__doc__, images=10_000, layers=[1, 3, 5])
    zoo = common.data()
    typical = zoo.cifar10("train10k")[0][:512]
    x, y = (part[: options.images] for part in zoo.cifar10("test"))
    model = zoo.cifar_resnet(20)
    target = find("x86").replace(weights=Format(4, per_channel=True))
    eight = LayerFormat(weights=Format(8, per_channel=True))

    def accuracy(network: object) -> float:
        equal = sum(int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))  # type: ignore[operator]
        return 100 * equal / len(x)

    def optimize(names: list[str]) -> graphopt.Optimized:
        formats = dict.fromkeys(names, eight)
        return graphopt.optimize(
            model, typical[:1], target=target, calibration=typical, formats=formats, rounding="nearest", measure=False
        )

    def row(which: str, network: object, found: graphopt.Analysis) -> dict[str, Any]:
        output = found.layers[-1].cumulative.output.sqnr_db
        return {"8-bit layers": which, "top-1 %": accuracy(network), "output SQNR dB": round(output, 1)}

    plain = optimize([])
    analysis = graphopt.analyze(plain.graph, typical)
    analysis.print(layers=8, tensors=5)
    ranked = [layer.name for layer in analysis.ranked() if layer.weight_bits is not None]
    with torch.no_grad():
        rows = [{"8-bit layers": "float network", "top-1 %": accuracy(model)}]
    rows.append(row("none", plain.artifact, analysis))
    for count in options.layers:
        for which, names in (("worst", ranked[:count]), ("least bad", ranked[-count:])):
            common.log(f"{which} {count}")
            found = optimize(names)
            rows.append(row(f"the {count} {which}", found.artifact, graphopt.analyze(found.graph, typical)))
    common.finish({f"ResNet-20, 4-bit weights, {len(x)} test images": rows}, options.json)


if __name__ == "__main__":
    main()
