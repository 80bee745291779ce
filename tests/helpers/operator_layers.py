"""Calls of operators that have sizes to choose, with their arguments off their defaults: layers, products, resizes."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from operator_samples import Call, Sample, each, floats, integers, positive
from torch import Tensor, nn


def pools() -> list[Call]:
    def averages(x: Tensor) -> list[Tensor]:
        found = []
        for ceil in (False, True):
            for counts in (False, True):
                for divisor in (None, 3):
                    found.append(F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), ceil, counts, divisor))
        return found

    def strange(x: Tensor) -> list[Tensor]:
        return [
            F.avg_pool2d(x, 2, divisor_override=3),
            F.avg_pool2d(x, 3, 1),
            F.avg_pool2d(x, 4, ceil_mode=True),
            F.avg_pool2d(x[0], 3, 2, 1),
            F.avg_pool1d(x[:, 0], 3, 2, 1, True, False),
            F.avg_pool1d(x[:, 0], 3),
            F.avg_pool3d(x[None], (2, 3, 2), 2, 1, True, False),
            F.avg_pool3d(x[None], 2, divisor_override=5),
            F.avg_pool2d(x[..., :2, :3], (3, 2), 3, ceil_mode=True),
            F.avg_pool2d(x[..., :3, :6], (3, 4), (4, 5), (1, 2), True, False),
            F.avg_pool2d(x[..., :3, :6], (3, 4), (4, 5), (1, 2), True, True, 7),
            F.max_pool2d(x[..., :3, :6], 3, 2, 1, 2, True),
        ]

    def maxima(x: Tensor) -> list[Any]:
        return [
            F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.max_pool2d(x, (3, 2), (1, 2), 1, (2, 1)),
            F.max_pool1d(x[:, 0], 3, 2, 1, 1, True),
            F.max_pool3d(x[None], (2, 3, 2), 2, 1, 1, True),
            F.max_pool2d(x[0], 3, 2),
            F.max_pool2d(x, 3, 2, 1, return_indices=True),
        ]

    def adaptive(x: Tensor) -> list[Any]:
        return [
            F.adaptive_avg_pool2d(x, (3, 5)),
            F.adaptive_avg_pool2d(x, (7, 3)),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool1d(x[0], 4),
            F.adaptive_avg_pool2d(x[0], (2, 2)),
            F.adaptive_avg_pool3d(x[None], (2, 3, 4)),
        ]

    def largest(x: Tensor) -> list[Any]:
        return [
            F.adaptive_max_pool2d(x, (3, 5)),
            F.adaptive_max_pool2d(x[0], (None, 3)),  # type: ignore[arg-type]
            F.adaptive_max_pool1d(x[0], 4),
            F.adaptive_max_pool3d(x[None], (2, 3, 4)),
        ]

    return [averages, strange, maxima, adaptive, largest]


def resizes() -> list[Call]:
    modes: list[dict[str, Any]] = [{"mode": mode} for mode in ("nearest", "nearest-exact", "area")]
    for mode in ("bilinear", "bicubic"):
        modes += [
            {"mode": mode, **more} for more in ({"align_corners": True}, {"align_corners": False}, {"antialias": True})
        ]

    def to_sizes(x: Tensor, options: dict[str, Any]) -> list[Tensor]:
        return [F.interpolate(x, size=size, **options) for size in ((6, 6), (13, 20), (14, 18))]

    def by_factors(x: Tensor, options: dict[str, Any]) -> list[Tensor]:
        found = [F.interpolate(x, scale_factor=factor, **options) for factor in (1.5, 0.5, (2, 0.7))]
        return [*found, F.interpolate(x, scale_factor=1.7, recompute_scale_factor=True, **options)]

    found: list[Call] = [partial(how, options=options) for options in modes for how in (to_sizes, by_factors)]
    signals, volumes = ("nearest", "linear", "nearest-exact"), ("nearest", "trilinear", "nearest-exact")
    found.append(lambda x: [F.interpolate(x[:, 0], size=n, mode=m) for n in (5, 13) for m in signals])
    found.append(lambda x: [F.interpolate(x[None], size=(4, 5, 13), mode=m) for m in volumes])
    return found


def grids() -> list[Call]:
    def sample(x: Tensor, mode: str, padding: str, corners: bool) -> Tensor:
        grid = torch.tanh(x[:, :2, :5]).permute(0, 2, 3, 1) * 1.2
        return F.grid_sample(x, grid, mode, padding, corners)

    ways = itertools.product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (False, True))
    found: list[Call] = [partial(sample, mode=m, padding=p, corners=c) for m, p, c in ways]
    return [*found, lambda x: F.affine_grid(x[:, :2, :1, :3].reshape(2, 2, 3), [2, 3, 4, 5], align_corners=False)]


def products() -> list[Sample]:
    a, b = floats(2, 1, 4, 5), floats(3, 5, 6)
    square, vector = floats(4, 5), floats(5)
    return [
        *each(
            [torch.matmul],
            (a, b),
            (a, vector),
            (vector, b),
            (vector, vector),
            (square, b[0]),
            (integers(3, 4), integers(4, 5)),
        ),
        *each(
            [lambda x, m, n: torch.addmm(x, m, n, beta=0.5, alpha=2), lambda x, m, n: torch.einsum("ij,jk->ki", m, n)],
            (floats(6), square, b[0]),
        ),
        *each([lambda x, y: torch.baddbmm(x[:, :1, :1], x, y, beta=2, alpha=0.5)], (floats(3, 4, 5), b)),
        *each(
            [lambda x, w, c: F.linear(x, w, c), lambda x, w, c: F.linear(x, w)],
            (floats(2, 3, 5), floats(4, 5), floats(4)),
        ),
        *each(
            [lambda x, y: F.bilinear(x, y, torch.ones(2, 5, 5) / 3), lambda x, y: torch.outer(x[0], y[0])],
            (floats(3, 5), floats(3, 5) + 1),
        ),
    ]


def convolutions() -> list[Sample]:
    found = []
    convs: list[Any] = [F.conv1d, F.conv2d, F.conv3d]
    backwards: list[Any] = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
    for n, (conv, back) in enumerate(zip(convs, backwards, strict=True), start=1):
        x, w, c = floats(2, 4, 7, 6, 5)[(..., *[0] * (3 - n))], floats(6, 2, *(3, 2, 3)[:n]), floats(6)  # type: ignore[index]
        if n < 3:
            x = floats(2, 4, *(7, 6)[:n])
        found += [
            Sample(lambda x, w, c, f=conv: f(x, w, c, stride=2, padding=1, dilation=2, groups=2), (x, w, c)),
            Sample(lambda x, w, f=conv: f(x[0], w, groups=2), (x, w)),
            Sample(lambda x, w, c, f=back: f(x, w, c, 2, 1, 1, 1), (x, floats(4, 6, *(3, 2, 3)[:n]), c)),
            Sample(lambda x, w, c, f=back: f(x, w, c, 3, 1, 2, 2, 2), (x, floats(4, 3, *(3, 2, 3)[:n]), c)),
            Sample(lambda x, w, f=back: f(x[0], w, None, 1, 2), (x, floats(4, 3, *[3] * n))),
        ]
    return found


def norms() -> list[Sample]:
    scale, shift, mean, variance = floats(6), floats(6) + 1, floats(6) - 1, positive(6)
    return [
        *each(
            [
                lambda x, s, t: F.layer_norm(x, (6,), s, t, 0.1),
                lambda x, s, t: F.layer_norm(x, (5, 6)),
                lambda x, s, t: F.rms_norm(x, (6,), s, 0.1),
            ],
            (floats(2, 5, 6), scale, shift),
        ),
        *each(
            [
                lambda x, s, t: F.group_norm(x, 3, s, t, 0.1),
                lambda x, s, t: F.group_norm(x, 2),
                lambda x, s, t: F.instance_norm(x, weight=s, bias=t, eps=0.1),
                lambda x, s, t: F.local_response_norm(x, 3, 0.1, 0.5, 2.0),
            ],
            (floats(2, 6, 3, 5), scale, shift),
        ),
        *each(
            [lambda x, m, v, s, t: F.batch_norm(x, m, v, s, t, eps=0.1), lambda x, m, v, s, t: F.batch_norm(x, m, v)],
            (floats(2, 6, 3, 5), mean, variance, scale, shift),
        ),
    ]


def attention() -> list[Sample]:
    q, k = floats(2, 4, 5, 8), floats(2, 4, 7, 8)
    attend = F.scaled_dot_product_attention
    return [
        *each(
            [
                attend,
                lambda q, k, v: attend(q, k, v, scale=0.3),
                lambda q, k, v: attend(q, k, v, is_causal=True),
                lambda q, k, v: attend(q[:, 0], k[:, 0], v[:, 0]),
                lambda q, k, v: attend(q, k[:, :2], v[:, :2], enable_gqa=True),
            ],
            (q, k, k * 2),
        ),
        *each([lambda q, k, m: attend(q, k, k, m), lambda q, k, m: attend(q, k, k, m > 0)], (q, k, floats(5, 7))),
        *each(
            [
                lambda q, k, m: attend(q, k, k, m > 0),  # some rows allow nothing
                lambda q, k, m: attend(1e4 * q, k, k, m > 0),
                lambda q, k, m: attend(q[:, 0], k[:, 0], k[:, 0], m[:, 0] > 0),
            ],
            (q, k, torch.tensor([[-1.0] * 7, [1.0] * 7, [-1.0, 2.0] * 3 + [3.0]]).repeat(2, 2, 1)[:, None, :5]),
        ),
    ]


def recurrent() -> list[Sample]:
    torch.manual_seed(0)
    x, start = floats(3, 2, 5), floats(2, 2, 4)
    lstm, both = nn.LSTM(5, 4, 2, batch_first=True).eval(), nn.LSTM(5, 4, bidirectional=True).eval()
    projected = nn.LSTM(5, 4, proj_size=2).eval()
    gru, plain = nn.GRU(5, 4, 2, bias=False).eval(), nn.RNN(5, 4, nonlinearity="relu").eval()
    cell = nn.LSTMCell(5, 4).eval()
    modules = [lstm, both, projected, plain]
    return [*(Sample(m, (x,)) for m in modules), Sample(gru, (x, start)), Sample(cell, (x[0],))]
