"""Calls of operators with their arguments off their defaults, for tests of every backend: operator -> functions and inputs.

Sizes are odd and differ from each other, operands are broadcast, types are those that are legal. A
function returns one tensor, or several.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[..., Any]


class Sample(NamedTuple):
    """A call, and what it is called with."""

    call: Call
    inputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        """Where the call is written, and what is called."""
        inputs = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in self.inputs)
        code = getattr(self.call, "__code__", None)
        if code is None:
            return f"{getattr(self.call, '__name__', self.call)} on ({inputs})"
        names = " ".join(map(str, [*code.co_names, *(c for c in code.co_consts if not callable(c))]))
        return f"{code.co_name} in line {code.co_firstlineno} of operators.py, of {names}, on ({inputs})"


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=_seed(shape)).to(dtype)


def positive(*shape: int) -> Tensor:
    return floats(*shape).abs() + 0.1


def integers(*shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=_seed(shape)).to(dtype)


def flags(*shape: int) -> Tensor:
    return floats(*shape) > 0


def _seed(shape: tuple[int, ...]) -> torch.Generator:
    return torch.Generator().manual_seed(sum(shape) + len(shape))


IMAGE = floats(2, 3, 7, 9)
PAIR = (floats(2, 3, 7, 9), floats(3, 1, 9))
WHOLE = (integers(2, 3, 5), integers(3, 1, dtype=torch.int32))
FLOAT16_FORMATS = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.2])


def _each(calls: list[Call], *inputs: tuple[Tensor, ...]) -> list[Sample]:
    return [Sample(call, given) for call in calls for given in inputs]


SUMS: list[Call] = [
    lambda a, b: torch.add(a, b, alpha=2),
    lambda a, b: torch.sub(a, b, alpha=3),
    lambda a, b: torch.rsub(a, b, alpha=2),
    lambda a, b: torch.add(a, 5, alpha=2) + b,
    lambda a, b: torch.sub(a, 5, alpha=2) + b,
    lambda a, b: torch.rsub(a, 5, alpha=2) + b,
    lambda a, b: a * b - 3 * a,
    lambda a, b: (1.5 - a) + b * 0.5,
]
ACTIVATIONS: list[Call] = [
    F.relu,
    F.relu6,
    lambda x: F.hardtanh(x, -0.3, 0.7),
    lambda x: F.leaky_relu(x, 0.3),
    lambda x: F.elu(x, 0.7),
    lambda x: F.celu(x, 0.7),
    F.selu,
    lambda x: F.softplus(x, 2, 0.5),
    lambda x: F.gelu(x, approximate="tanh"),
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.hardsigmoid,
    torch.sigmoid,
    torch.tanh,
    F.softsign,
    F.logsigmoid,
    lambda x: F.glu(F.pad(x, (0, 1)), -1),
    lambda x: F.threshold(x, 0.2, -1.0),
    lambda x: F.hardshrink(x, 0.4),
    lambda x: F.softshrink(x, 0.4),
    F.tanhshrink,
    lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])),
    lambda x: torch.clamp(x, min=-0.2),
    lambda x: torch.clamp(x, max=0.2),
    lambda x: torch.clamp(x, -0.1, 0.2),
    lambda x: torch.clamp(x, torch.tensor(-0.5), x.mean()),
    lambda x: F.dropout(x, 0.5, training=False),
]
UNARY: list[Call] = [
    torch.abs,
    torch.neg,
    torch.sign,
    torch.exp,
    torch.expm1,
    torch.sin,
    torch.cos,
    torch.atan,
    torch.sinh,
    torch.cosh,
    torch.asinh,
    torch.erf,
    torch.square,
    torch.floor,
    torch.ceil,
    torch.trunc,
    torch.round,
    torch.frac,
    lambda x: torch.round(x, decimals=1),
    torch.isnan,
    torch.isinf,
    torch.logical_not,
    lambda x: torch.nan_to_num(x, 0.5),
    lambda x: x**2,
    lambda x: x**3,
    lambda x: 2.0**x,
    torch.reciprocal,
]
UNARY_POSITIVE: list[Call] = [
    torch.log,
    torch.log2,
    torch.log10,
    torch.log1p,
    torch.sqrt,
    torch.rsqrt,
    lambda x: x**0.5,
    lambda x: x**-1.5,
    lambda x: x**x,
    lambda x: torch.atanh(x / 9),
    lambda x: torch.acosh(x + 1),
    lambda x: torch.asin(x / 9),
    lambda x: torch.acos(x / 9),
    lambda x: torch.logit(x, 0.1),
]
COMPARISONS: list[Call] = [
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
    lambda a, b: a > 0.5,
    lambda a, b: b <= 2,
    torch.logical_and,
    torch.logical_or,
    torch.logical_xor,
    torch.maximum,
    torch.minimum,
    lambda a, b: torch.where(a > b, a, b),
    lambda a, b: torch.where(a > b, a, 2.5),
    lambda a, b: a.masked_fill(b > 0, 7),
    lambda a, b: torch.where(b > 0, a, 1) + b,
]
QUOTIENTS: list[Call] = [
    lambda a, b: a / b,
    lambda a, b: a / 4,
    lambda a, b: torch.div(a, b, rounding_mode="floor"),
    lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    lambda a, b: a // 3,
    lambda a, b: torch.remainder(a, b),
    lambda a, b: torch.remainder(a, 4),
    lambda a, b: torch.fmod(a, b),
    lambda a, b: torch.fmod(a, 3),
]
REDUCTIONS: list[Call] = [
    lambda x: x.sum(),
    lambda x: x.sum(1),
    lambda x: x.sum((0, -1), keepdim=True),
    lambda x: x.sum(1, dtype=torch.float32),
    lambda x: x.mean((1, 2), dtype=torch.float32),
    lambda x: x.float().mean(1, keepdim=True),
    lambda x: x.float().mean(),
    lambda x: x.amax((0, 2)),
    lambda x: x.amin(1, keepdim=True),
    lambda x: x.max(),
    lambda x: x.min(),
    lambda x: x.prod(1),
    lambda x: x.any(),
    lambda x: (x > 1).all(1),
    lambda x: (x > 1).any(-1, keepdim=True),
    lambda x: x.cumsum(1),
    lambda x: x.cumprod(-1, dtype=torch.float32),
    lambda x: x.cumsum(-1, dtype=torch.float32),
    lambda x: (x > 0).sum(1),
    lambda x: (x > 0).sum(),
]
STATISTICS: list[Call] = [
    lambda x: x.std(),
    lambda x: x.std(1),
    lambda x: x.var((0, 2), correction=0, keepdim=True),
    lambda x: x.var(1, unbiased=False),
    lambda x: torch.var_mean(x, (1, 2)),
    lambda x: torch.std_mean(x, -1, correction=0),
    lambda x: torch.logsumexp(x, (1, 2)),
    lambda x: x.norm(2, 1),
    lambda x: torch.linalg.vector_norm(x, 1, (1, 2), keepdim=True),
    lambda x: F.normalize(x, p=2, dim=1),
    lambda x: x.cumprod(1),
    lambda x: F.softmax(x, 1),
    lambda x: F.softmax(x, -2, dtype=torch.float32),
    lambda x: F.log_softmax(x, 1),
    lambda x: F.softmin(x, 1),
    lambda x: F.cosine_similarity(x, x.flip(1), 1),
]
ORDERS: list[Call] = [
    lambda x: x.max(1),
    lambda x: x.min(-1, keepdim=True),
    lambda x: x.argmax(),
    lambda x: x.argmax(1),
    lambda x: x.argmin(-1, keepdim=True),
    lambda x: x.topk(2, 1),
    lambda x: x.topk(3, -1, largest=False),
    lambda x: x.sort(1),
    lambda x: x.sort(-1, descending=True),
    lambda x: x.argsort(1),
]
MOVES: list[Call] = [
    lambda x: x.permute(0, 2, 3, 1).flatten(1, 2),
    lambda x: x.transpose(1, -1).reshape(2, -1),
    lambda x: x[:, 1:, ::2, -4:],
    lambda x: x[:, -1],
    lambda x: x.select(2, 3),
    lambda x: x.narrow(3, 2, 4),
    lambda x: x.unbind(1),
    lambda x: x.split(2, 1),
    lambda x: x.split([4, 3], 2),
    lambda x: x.chunk(4, -1),
    lambda x: torch.cat([x, x[:, :1]], 1),
    lambda x: torch.stack([x, x], -1),
    lambda x: x.flip((1, 3)),
    lambda x: x.roll((2, -1), (2, 3)),
    lambda x: x.repeat(1, 2, 1, 2),
    lambda x: x.unsqueeze(2).expand(-1, -1, 4, -1, -1),
    lambda x: x[:1].squeeze(0),
    lambda x: x[:, :1].squeeze(),
    lambda x: x[:1, :1].squeeze((0, 1)),
    lambda x: x.repeat_interleave(3, 1),
    lambda x: x.unflatten(-1, (3, 3)),
    lambda x: x.movedim(1, -1),
    lambda x: x.tril(1),
    lambda x: x.triu(-1),
    lambda x: x.diagonal(1, 2, 3),
    lambda x: x.unfold(3, 4, 2),
    lambda x: x.tile(2, 1, 1, 1),
    lambda x: torch.meshgrid(x[0, 0, 0], x[0, 0, 1], indexing="ij"),
    lambda x: torch.zeros_like(x) + torch.ones_like(x, dtype=torch.float32),
    lambda x: torch.full_like(x, 3),
    lambda x: x.new_zeros(3) + x[0, 0, 0, :3],
    lambda x: F.pad(x, (1, 2, 0, 3), value=2),
    lambda x: F.pad(x, (-1, 2, 1, -2)),
    lambda x: x.to(torch.float64) / 3,
    lambda x: x.to(torch.int32),
    lambda x: x.bool(),
    lambda x: x.half().float(),
    lambda x: x.clone().contiguous(),
]
IMAGES: list[Call] = [
    lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"),
    lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"),
    lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"),
    lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    lambda x: F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1)), 2),
    lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 3),
    lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=(1, 2)),
    lambda x: F.unfold(x[0], 3, stride=2),
]
INDEXING: list[Call] = [
    lambda x, i: x[:, :, i],
    lambda x, i: x[i],
    lambda x, i: x[..., i, i],
    lambda x, i: x[i, :, i],
    lambda x, i: x.index_select(2, i.abs()),
    lambda x, i: x[0, 0].gather(0, i.abs()[:, None].expand(-1, 4)),
    lambda x, i: x[:, 0].gather(-1, i.abs().expand(2, 1, -1)),
    lambda x, i: x[:, 0].take_along_dim(i.abs()[None, None], -1),
    lambda x, i: x[:1, :, 0].take_along_dim(i.abs()[:, None, None], 1),
    lambda x, i: x[0, 0].take_along_dim(i.abs()),
    lambda x, i: F.embedding(i.abs()[None], x[0, 0], padding_idx=1),
    lambda x, i: F.one_hot(i.abs(), 4) + 1,
    lambda x, i: x[0, 0].scatter(0, i.abs()[:1, None], 5.0),
    lambda x, i: torch.take_along_dim(x[0, 0], i.abs()[:, None], 0),
    lambda x, i: x[0, 0].scatter_add(0, i.abs()[:, None], x[0, 0, :2, :1]),
    lambda x, i: x + (torch.arange(x.shape[-1]) + 0.5),
    lambda x, i: torch.arange(1, 10, 2) * i[:1],
    lambda x, i: torch.linspace(0, 1, 9) * x,
    lambda x, i: i * 2 + 2**40,
]


def _pools() -> list[Call]:
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


def _resizes() -> list[Call]:
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


def _grids() -> list[Call]:
    def sample(x: Tensor, mode: str, padding: str, corners: bool) -> Tensor:
        grid = torch.tanh(x[:, :2, :5]).permute(0, 2, 3, 1) * 1.2
        return F.grid_sample(x, grid, mode, padding, corners)

    ways = itertools.product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (False, True))
    found: list[Call] = [partial(sample, mode=m, padding=p, corners=c) for m, p, c in ways]
    return [*found, lambda x: F.affine_grid(x[:, :2, :1, :3].reshape(2, 2, 3), [2, 3, 4, 5], align_corners=False)]


def _products() -> list[Sample]:
    a, b = floats(2, 1, 4, 5), floats(3, 5, 6)
    square, vector = floats(4, 5), floats(5)
    return [
        *_each(
            [torch.matmul],
            (a, b),
            (a, vector),
            (vector, b),
            (vector, vector),
            (square, b[0]),
            (integers(3, 4), integers(4, 5)),
        ),
        *_each(
            [lambda x, m, n: torch.addmm(x, m, n, beta=0.5, alpha=2), lambda x, m, n: torch.einsum("ij,jk->ki", m, n)],
            (floats(6), square, b[0]),
        ),
        *_each([lambda x, y: torch.baddbmm(x[:, :1, :1], x, y, beta=2, alpha=0.5)], (floats(3, 4, 5), b)),
        *_each(
            [lambda x, w, c: F.linear(x, w, c), lambda x, w, c: F.linear(x, w)],
            (floats(2, 3, 5), floats(4, 5), floats(4)),
        ),
        *_each(
            [lambda x, y: F.bilinear(x, y, torch.ones(2, 5, 5) / 3), lambda x, y: torch.outer(x[0], y[0])],
            (floats(3, 5), floats(3, 5) + 1),
        ),
    ]


def _convolutions() -> list[Sample]:
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


def _norms() -> list[Sample]:
    scale, shift, mean, variance = floats(6), floats(6) + 1, floats(6) - 1, positive(6)
    return [
        *_each(
            [
                lambda x, s, t: F.layer_norm(x, (6,), s, t, 0.1),
                lambda x, s, t: F.layer_norm(x, (5, 6)),
                lambda x, s, t: F.rms_norm(x, (6,), s, 0.1),
            ],
            (floats(2, 5, 6), scale, shift),
        ),
        *_each(
            [
                lambda x, s, t: F.group_norm(x, 3, s, t, 0.1),
                lambda x, s, t: F.group_norm(x, 2),
                lambda x, s, t: F.instance_norm(x, weight=s, bias=t, eps=0.1),
                lambda x, s, t: F.local_response_norm(x, 3, 0.1, 0.5, 2.0),
            ],
            (floats(2, 6, 3, 5), scale, shift),
        ),
        *_each(
            [lambda x, m, v, s, t: F.batch_norm(x, m, v, s, t, eps=0.1), lambda x, m, v, s, t: F.batch_norm(x, m, v)],
            (floats(2, 6, 3, 5), mean, variance, scale, shift),
        ),
    ]


def _attention() -> list[Sample]:
    q, k = floats(2, 4, 5, 8), floats(2, 4, 7, 8)
    attend = F.scaled_dot_product_attention
    return [
        *_each(
            [
                attend,
                lambda q, k, v: attend(q, k, v, scale=0.3),
                lambda q, k, v: attend(q, k, v, is_causal=True),
                lambda q, k, v: attend(q[:, 0], k[:, 0], v[:, 0]),
                lambda q, k, v: attend(q, k[:, :2], v[:, :2], enable_gqa=True),
            ],
            (q, k, k * 2),
        ),
        *_each([lambda q, k, m: attend(q, k, k, m), lambda q, k, m: attend(q, k, k, m > 0)], (q, k, floats(5, 7))),
    ]


def _recurrent() -> list[Sample]:
    torch.manual_seed(0)
    x, start = floats(3, 2, 5), floats(2, 2, 4)
    lstm, both = nn.LSTM(5, 4, 2, batch_first=True).eval(), nn.LSTM(5, 4, bidirectional=True).eval()
    projected = nn.LSTM(5, 4, proj_size=2).eval()
    gru, plain = nn.GRU(5, 4, 2, bias=False).eval(), nn.RNN(5, 4, nonlinearity="relu").eval()
    cell = nn.LSTMCell(5, 4).eval()
    modules = [lstm, both, projected, plain]
    return [*(Sample(m, (x,)) for m in modules), Sample(gru, (x, start)), Sample(cell, (x[0],))]


OPERATORS: dict[str, list[Sample]] = {
    "sums": [*_each(SUMS, PAIR), *_each(SUMS[:-1], WHOLE)],
    "activations": _each(ACTIVATIONS, (IMAGE,)),
    "functions": [
        *_each(UNARY, (IMAGE + 0.01,)),
        *_each(UNARY_POSITIVE, (positive(2, 3, 5),)),
        *_each([torch.round], (FLOAT16_FORMATS,)),
    ],
    "functions of integers": _each(
        [
            torch.abs,
            torch.neg,
            torch.sign,
            torch.floor,
            torch.round,
            torch.square,
            lambda x: x**3,
            torch.exp,
            torch.sigmoid,
            torch.logical_not,
            torch.bitwise_not,
            torch.relu,
            lambda x: x.clamp(-2, 3),
            lambda x: x.clamp(min=0.5),
            torch.isnan,
        ],
        (integers(3, 5),),
        (integers(3, 5, dtype=torch.int32),),
    ),
    "comparisons": [
        *_each(COMPARISONS, PAIR),
        *_each(COMPARISONS, WHOLE),
        *_each(COMPARISONS[:2], (flags(3, 5), flags(3, 1))),
    ],
    "bits": _each(
        [
            torch.bitwise_and,
            torch.bitwise_or,
            torch.bitwise_xor,
            lambda a, b: a & b[:1],
            lambda a, b: ~a,
            lambda a, b: a ^ b,
        ],
        (integers(3, 5), integers(3, 1)),
        (flags(3, 5), flags(3, 1)),
    ),
    "quotients": [
        *_each(QUOTIENTS, PAIR),
        *_each(QUOTIENTS, (integers(2, 3, 5), integers(3, 1, low=1, dtype=torch.int32) * -1)),
    ],
    "reductions": [
        *_each(REDUCTIONS, (floats(2, 3, 5),)),
        *_each(REDUCTIONS, (integers(2, 3, 5, low=-3, high=4, dtype=torch.int32),)),
        *_each([lambda x: x.sum(1), lambda x: x.any(1), lambda x: x.all(), lambda x: x.cumsum(1)], (flags(2, 3, 5),)),
    ],
    "statistics": _each(STATISTICS, (floats(2, 3, 5),)),
    "orders": [
        *_each(ORDERS, (floats(2, 3, 5),)),
        *_each(ORDERS, (torch.randperm(30, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 5),)),
    ],
    "moves": [*_each(MOVES, (IMAGE,)), *_each(MOVES, (integers(2, 3, 7, 9),))],
    "moves of images": _each(IMAGES, (IMAGE,)),
    "indexing": _each(INDEXING, (floats(2, 3, 4, 9), torch.tensor([1, -1]))),
    "pools": _each(_pools(), (IMAGE,)),
    "resizes": _each(_resizes(), (IMAGE,)),
    "grids": _each(_grids(), (IMAGE,)),
    "products": _products(),
    "convolutions": _convolutions(),
    "norms": _norms(),
    "attention": _attention(),
    "recurrent layers": _recurrent(),
}


class Calls(nn.Module):
    """Calls that share no input, in one model."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self.counts = [len(sample.inputs) for sample in samples]
        self.calls = [sample.call for sample in samples]
        self.inner = nn.ModuleList(call for call in self.calls if isinstance(call, nn.Module))

    def forward(self, *inputs: Tensor) -> list[Any]:
        found, at = [], 0
        for call, count in zip(self.calls, self.counts, strict=True):
            found.append(call(*inputs[at : at + count]))
            at += count
        return found


def inputs_of(samples: list[Sample]) -> tuple[Tensor, ...]:
    return tuple(tensor for sample in samples for tensor in sample.inputs)
