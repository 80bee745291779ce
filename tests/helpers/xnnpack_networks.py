"""Networks that people have, small: what XNNPACK's kernels, and the form that they take, are tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, model_of
from rewriting import Model
from torch import Tensor, nn


class Network(NamedTuple):
    """A network with inputs of eight samples."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


def _plain(body: Callable[..., Any], *, seeds: tuple[int, ...] = (1,), **modules: Any) -> Callable[[], Network]:
    def make() -> Network:
        return Network(
            Model(body, **{name: each() for name, each in modules.items()}).eval(), tuple(map(_images, seeds))
        )

    return make


def _images(seed: int) -> Tensor:
    return images(8, seed)


def _a(channels: int = 8, **options: Any) -> Callable[[], nn.Module]:
    return lambda: conv(3, channels, **options)


def _b(channels: int = 8, outputs: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(channels, outputs, 3, **options)


def _linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def _block(name: str) -> Callable[[], Network]:
    return lambda: Network(model_of(name), (_images(1),))


def _parameter() -> Any:
    return nn.Parameter(torch.linspace(-1, 1, 8).reshape(8, 1, 1))


INTEGER: dict[str, Callable[[], Network]] = {  # every call computes with codes, or moves them
    "pad": _plain(lambda m, x: m.b(F.pad(m.a(x).relu(), (1, 2, 0, 1))), a=_a(), b=_b()),
    "pad at the end": _plain(lambda m, x: F.max_pool2d(F.pad(m.a(x), (1, 2, 0, 1)), 2), a=_a()),
    "conv1d": _plain(
        lambda m, x: m.b(m.a(x.flatten(2)).relu()),
        a=lambda: nn.Conv1d(3, 8, 3, padding=1, stride=2), b=lambda: nn.Conv1d(8, 6, 5, groups=2),
    ),
    "groups": _plain(lambda m, x: m.b(m.a(x)), a=_a(12, stride=2), b=_b(12, 24, groups=3, dilation=2, padding=2)),
    "depthwise": _plain(lambda m, x: m.b(m.a(x)), a=_a(12, stride=2), b=_b(12, 24, groups=12)),
    "difference": _plain(lambda m, x: m.a(x) - m.b(x), a=_a(), b=_a()),
    "product": _plain(lambda m, x: m.c(m.a(x) * m.b(x)), a=_a(), b=_a(), c=_b()),
    "numbers": _plain(lambda m, x: m.c(m.a(x) * 0.5 + 1), a=_a(), c=_b()),
    "constants": _plain(lambda m, x: m.c(m.a(x) + m.p) * m.p[:3], a=_a(), c=_b(), p=_parameter),
    "broadcast": _plain(lambda m, x: m.c(m.a(x) + m.b(x).mean((2, 3), keepdim=True)), a=_a(), b=_a(), c=_b()),
    "sum and relu": _plain(lambda m, x: m.c(F.relu(m.a(x) + m.b(x))), a=_a(), b=_a(), c=_b()),
    "sum and relu6": _plain(lambda m, x: m.c(F.relu6(20 * (m.a(x) + m.b(x)))), a=_a(), b=_a(), c=_b()),
    "clamps": _plain(lambda m, x: m.c(m.a(x).clamp(min=-0.1)).clamp(max=0.1), a=_a(), c=_b()),
    "linear of tokens": _plain(lambda m, x: m.b(F.relu(m.a(x.flatten(2)))), a=_linear(64, 16), b=_linear(16, 7)),
    "seven joined": _plain(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x), m.a(x).relu(), m.b(x).relu(), m.a(x), m.b(x), m.d(x)], 1)),
        a=_a(), b=_a(), d=_a(), c=_b(56),
    ),
    "maxima": _plain(lambda m, x: m.c(F.max_pool2d(m.a(x), 3, 2, ceil_mode=True)), a=_a(), c=_b()),
    "split": _plain(
        lambda m, x: torch.cat([m.b(m.a(x).chunk(2, 1)[0]), m.a(x).chunk(2, 1)[1]], 1), a=_a(), b=lambda: conv(4, 4)
    ),
    "shuffle": _plain(
        lambda m, x: m.c(F.channel_shuffle(torch.cat([m.a(x).relu(), m.b(x)], 1), 2)), a=_a(4), b=_a(4), c=_b()
    ),
    "nearest": _plain(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2)), a=_a(), b=_b()),
    "two inputs": _plain(
        lambda m, x, y: (m.a(x) + m.b(y), {"u": m.a(x).relu(), "v": m.b(y).mean((2, 3))}), seeds=(1, 2), a=_a(), b=_a()
    ),
    "shared weights": _plain(lambda m, x: m.a(m.a(m.b(x).relu()).relu()), a=lambda: conv(8, 8), b=_a()),
    "odd sizes": _plain(
        lambda m, x: m.c(m.b(m.a(x).relu()).flatten(1)), a=_a(7, stride=2), b=_b(7, 5, padding=1), c=_linear(80, 3)
    ),
    "input returned": _plain(lambda m, x: (x, m.a(x), m.a(x)), a=_a()),
    "tokens": _plain(lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)), a=_a(), b=_linear(8, 5)),
    **{name: _block(name) for name in ("residual", "concat", "relu6")},
}  # fmt: skip
MIXED: dict[str, Callable[[], Network]] = {  # some calls have no integer kernels
    "hard swish": _plain(lambda m, x: m.c(F.hardswish(m.a(x))), a=_a(), c=_b()),
    "functions": _plain(
        lambda m, x: m.c(
            torch.cat([f(m.a(x)) for f in (torch.sigmoid, torch.tanh, F.gelu, F.silu, F.elu, F.leaky_relu)], 1)
        ),
        a=_a(), c=_b(48),
    ),
    "means": _plain(lambda m, x: m.c(F.avg_pool2d(F.avg_pool2d(m.a(x), 3, 2, 1), 2)), a=_a(), c=_b(padding=1)),
    "transposed": _plain(
        lambda m, x: m.b(m.a(x).relu()), a=_a(), b=lambda: nn.ConvTranspose2d(8, 4, 2, stride=2)
    ),
    "softmax": _plain(lambda m, x: F.softmax(m.b(m.a(x).flatten(1)), -1), a=_a(), b=_linear(512, 5)),
    "attention": _plain(
        lambda m, x: m.o(F.scaled_dot_product_attention(*(f(x.flatten(2)) for f in (m.q, m.k, m.v)))),
        q=_linear(64, 16), k=_linear(64, 16), v=_linear(64, 16), o=_linear(16, 8),
    ),
    "layer norm": _plain(
        lambda m, x: m.b(m.n(m.a(x.flatten(2)))), a=_linear(64, 16), n=lambda: nn.LayerNorm(16), b=_linear(16, 8)
    ),
    "bilinear": _plain(
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")), a=_a(), b=_b()
    ),
    **{name: _block(name) for name in BLOCKS if name not in INTEGER},
}  # fmt: skip


def network(name: str) -> Network:
    """The network of this name, alike in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return (INTEGER | MIXED)[name]()
