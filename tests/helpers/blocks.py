"""Small networks, one per thing that real ones are made of, and what an integer target makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rewriting import Model
from torch import Tensor, nn

from graphopt.backends.onnxruntime import OnnxRuntimeArtifact, lower
from graphopt.compiler.recipes import recipe
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import Target, find, host


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, activation: type[nn.Module] = nn.ReLU, **options: Any
) -> nn.Module:
    return nn.Sequential(conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), activation())


def residual() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = F.relu(y + m.norm(m.second(m.first(y))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv_bn(3, 8), first=conv_bn(8, 8), second=conv(8, 8), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 5)
    )


def concat() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head(m.join(torch.cat([m.a(y), m.b(y), F.max_pool2d(y, 3, 1, 1)], 1)).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv_bn(3, 8), a=conv_bn(8, 4, 1), b=conv_bn(8, 4), join=conv_bn(16, 8, 1), head=nn.Linear(8, 5)
    )


def inverted_residual() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head((y + m.project(m.depth(m.expand(y)))).mean((2, 3)))  # type: ignore[no-any-return]

    swish = nn.Hardswish
    return Model(
        body, stem=conv_bn(3, 8, activation=swish), expand=conv_bn(8, 16, 1, swish), depth=conv_bn(16, 16, 3, swish, groups=16),
        project=conv_bn(16, 8, 1, nn.Identity), head=nn.Linear(8, 5),
    )  # fmt: skip


def relu6_chain() -> nn.Module:
    return Model(
        lambda m, x: m.head(m.point(m.depth(m.stem(x))).mean((2, 3))),
        stem=conv_bn(3, 8, activation=nn.ReLU6), depth=conv_bn(8, 8, 3, nn.ReLU6, groups=8), point=conv_bn(8, 8, 1, nn.ReLU6),
        head=nn.Linear(8, 5),
    )  # fmt: skip


def squeeze_excite() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        gate = F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        return m.head((y * gate).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(body, stem=conv_bn(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), head=nn.Linear(8, 5))


def squeeze_excite_linear() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        gate = torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3))))))
        return m.head((y * gate[:, :, None, None]).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(body, stem=conv_bn(3, 8), down=nn.Linear(8, 4), up=nn.Linear(4, 8), head=nn.Linear(8, 5))


def silu_residual() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head((y + m.second(m.first(y))).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv_bn(3, 8, activation=nn.SiLU), first=conv_bn(8, 8, 1, nn.SiLU), second=conv_bn(8, 8, 3, nn.SiLU),
        head=nn.Linear(8, 5),
    )  # fmt: skip


def plain() -> nn.Module:
    """Pooling and flatten between convolutions and a linear layer."""
    return Model(
        lambda m, x: m.head(F.max_pool2d(m.second(F.avg_pool2d(m.first(x), 2)), 2).flatten(1)),
        first=conv_bn(3, 8), second=conv_bn(8, 8), head=nn.Linear(32, 5),
    )  # fmt: skip


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual, "concat": concat, "inverted residual": inverted_residual, "relu6": relu6_chain,
    "squeeze-excite": squeeze_excite, "squeeze-excite linear": squeeze_excite_linear, "silu residual": silu_residual,
    "plain": plain,
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return BLOCKS[name]().eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def target_of(name: str) -> Target:
    """A target in the weight format this machine computes without saturation."""
    found = find(name)
    weights: Any = found.formats.weights
    return found.replace(weights=replace(weights, bits=host().formats.weights.bits))


class Lowered(NamedTuple):
    model: nn.Module
    graph: Graph
    artifact: OnnxRuntimeArtifact


def simulated(model: nn.Module, target: Target, *inputs: Tensor, **options: Any) -> Graph:
    """Captured, cleaned and quantized; calibrated on its inputs and 16 other images, or on those given."""
    inputs = inputs or (images(2),)
    graph = Graph.capture(model.eval(), inputs)
    batches = [[*inputs]] if len(inputs) > 1 or inputs[0].shape[1:] != (3, 8, 8) else [[images(16)], [*inputs]]
    quantize = Quantize(target, batches, **{"estimator": "minmax", **options})  # the fastest
    passes = [quantize if isinstance(p, Quantize) else p for p in recipe(target, batches)]
    assert quantize in passes
    run(passes, graph, verify=False)
    return graph


@cache
def lowered(block: str, target: str) -> Lowered:
    model, chosen = model_of(block), target_of(target)
    graph = simulated(model, chosen)
    return Lowered(model, graph, lower(graph, chosen, name=block))
