"""Operators to draw: for each kind a function that writes one call with random arguments, or None where no value fits.

Calls with a tensor or two and no sizes to choose are those of `tests/helpers/operators.py`, taken from its text; what has
sizes, strides and weights is drawn here.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import operators as calls
import torch
import torch.nn.functional as F
from programs import seed
from rewriting import randomised
from torch import Tensor, nn

Kind = Callable[["Draw"], "str | None"]


class Draw:
    """The values so far, and random choices among them.

    Attributes:
        values: tensors by name; hidden: tuples, which only their elements are read from.
        parts: what makes each module.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, Tensor] = {}
        self.hidden: dict[str, Any] = {}
        self.parts: dict[str, str] = {}
        self.modules = SimpleNamespace()

    def run(self, expression: str, values: dict[str, Any]) -> Any:
        return eval(expression, {"torch": torch, "F": F, "nn": nn, "self": self.modules}, self.hidden | values)

    def made(self, name: str, expression: str) -> Any:
        """With the numbers that the network's text draws."""
        with torch.random.fork_rng(devices=[]):
            exec(seed(name), {"torch": torch})
            return eval(expression, {"torch": torch, "nn": nn})

    def part(self, expression: str) -> str:
        name = f"p{len(self.parts)}"
        with torch.random.fork_rng(devices=[]):
            exec(seed(name), {"torch": torch})
            module = randomised(eval(expression, {"nn": nn})).eval()
        setattr(self.modules, name, module)
        self.parts[name] = expression
        return f"self.{name}"

    def restore(self, parts: dict[str, str]) -> None:
        """Forget modules that were made for nothing."""
        self.parts = dict(parts)

    def pick(self, *ranks: int, floating: bool = True) -> str | None:
        """The name of a tensor, rather a late one, of one of these ranks (any if none is given)."""
        fits = [
            name
            for name, x in self.values.items()
            if x.is_floating_point() == floating and (not ranks or x.dim() in ranks)
        ]
        if not fits:
            return None
        return fits[-1] if self.rng.random() < 0.7 else self.rng.choice(fits)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def of(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def sizes(self, count: int, *options: int) -> Any:
        """One number for all dimensions, or one for each."""
        return self.of(*options) if self.rng.random() < 0.6 else tuple(self.of(*options) for _ in range(count))


def written(**options: Any) -> str:
    return "".join(f", {name}={value!r}" for name, value in options.items())


# ---- Layers ---------------------------------------------------------------------------------------------------------


def convolution(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n, channels = len(d.shape(x)) - 2, d.shape(x)[1]
    groups = d.of(1, 1, *(g for g in (2, 3, channels) if channels % g == 0))
    out = groups * d.of(1, 2, 3) if groups > 1 else d.of(2, 3, 4, 5, 8)
    mode = d.of("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    options = written(
        stride=d.sizes(n, 1, 1, 2, 3), padding=d.sizes(n, 0, 1, 1, 2), dilation=d.sizes(n, 1, 1, 2), groups=groups,
        bias=d.of(True, False), padding_mode=mode,
    )  # fmt: skip
    return f"{d.part(f'nn.Conv{n}d({channels}, {out}, {d.sizes(n, 1, 2, 3, 3)}{options})')}({x})"


def transposed_convolution(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n, channels = len(d.shape(x)) - 2, d.shape(x)[1]
    groups = d.of(1, *(g for g in (2, channels) if channels % g == 0))
    stride = d.of(1, 2, 3)
    options = written(
        stride=stride, padding=d.of(0, 1), output_padding=d.rng.randrange(stride), groups=groups, bias=d.of(True, False),
        dilation=d.of(1, 1, 2),
    )  # fmt: skip
    return f"{d.part(f'nn.ConvTranspose{n}d({channels}, {groups * d.of(1, 2, 3)}, {d.sizes(n, 2, 3)}{options})')}({x})"


def linear(d: Draw) -> str | None:
    if (x := d.pick(1, 2, 3, 4)) is None:
        return None
    made = f"nn.Linear({d.shape(x)[-1]}, {d.of(1, 3, 5, 8)}, bias={d.of(True, True, False)})"
    return f"{d.part(made)}({x})"


def batch_norm(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4, 5)) is None:
        return None
    n = max(len(d.shape(x)) - 2, 1)
    return (
        f"{d.part(f'nn.BatchNorm{n}d({d.shape(x)[1]}, eps={d.of(1e-5, 0.1)}, affine={d.of(True, True, False)})')}({x})"
    )


def other_norm(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    shape = d.shape(x)
    groups = d.of(*(g for g in range(1, shape[1] + 1) if shape[1] % g == 0))
    last = list(shape[-d.of(1, 2) :])
    affine = d.of(True, False)
    made = d.of(
        f"nn.LayerNorm({last}, eps={d.of(1e-5, 0.1)}, elementwise_affine={affine})",
        f"nn.GroupNorm({groups}, {shape[1]}, affine={affine})",
        f"nn.InstanceNorm{len(shape) - 2}d({shape[1]}, affine={affine})",
        f"nn.InstanceNorm{len(shape) - 2}d({shape[1]}, track_running_stats=True)",
        f"nn.RMSNorm({last}, elementwise_affine={affine})",
        f"nn.LocalResponseNorm({d.of(2, 3)}, alpha=0.1)",
    )
    return f"{d.part(made)}({x})"


def prelu(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4)) is None:
        return None
    return f"{d.part(f'nn.PReLU({d.of(1, d.shape(x)[1])})')}({x})"


def recurrent(d: Draw) -> str | None:
    if (x := d.pick(3)) is None:
        return None
    kind, features = d.of("LSTM", "GRU", "RNN"), d.shape(x)[-1]
    options = written(num_layers=d.of(1, 2), batch_first=d.of(True, True, False), bidirectional=d.of(False, True))
    return f"{d.part(f'nn.{kind}({features}, {d.of(2, 3)}{options})')}({x})[0]"


def embedding(d: Draw) -> str | None:
    if (x := d.pick(1, 2, 3, floating=False)) is None:
        return None
    return f"{d.part(f'nn.Embedding(7, {d.of(3, 4, 5)})')}({x}.long().abs() % 7)"


def attention(d: Draw) -> str | None:
    if (x := d.pick(3)) is None:
        return None
    width = d.shape(x)[-1]
    heads = d.of(*(h for h in (1, 2, 3, 4) if width % h == 0))
    if d.rng.random() < 0.5:
        return (
            f"{d.part(f'nn.MultiheadAttention({width}, {heads}, batch_first={d.of(True, False)})')}({x}, {x}, {x})[0]"
        )
    causal = written(is_causal=True) if d.rng.random() < 0.3 else ""
    return f"F.scaled_dot_product_attention({x}, {x}, {x} * 0.5{causal})"


def again(d: Draw) -> str | None:
    """A part that is there already, on another value."""
    if not d.parts or (x := d.pick()) is None:
        return None
    part = d.of(*d.parts)
    return f"self.{part}({x})" if not d.parts[part].startswith(("nn.LSTM", "nn.GRU", "nn.RNN", "nn.Multi")) else None


# ---- Windows --------------------------------------------------------------------------------------------------------


def average_pool(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n = len(d.shape(x)) - 2
    kernel = d.sizes(n, 2, 3)
    options = written(
        stride=d.sizes(n, 1, 2, 3), padding=d.of(0, 1), ceil_mode=d.of(True, False), count_include_pad=d.of(True, False),
        **({"divisor_override": 3} if n > 1 and d.rng.random() < 0.2 else {}),
    )  # fmt: skip
    return f"F.avg_pool{n}d({x}, {kernel}{options})"


def max_pool(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n = len(d.shape(x)) - 2
    options = written(
        stride=d.sizes(n, 1, 2, 3), padding=d.of(0, 1), dilation=d.of(1, 1, 2), ceil_mode=d.of(True, False)
    )
    return f"F.max_pool{n}d({x}, {d.sizes(n, 2, 3)}{options})"


def adaptive_pool(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n = len(d.shape(x)) - 2
    return f"F.adaptive_{d.of('avg', 'avg', 'max')}_pool{n}d({x}, {d.sizes(n, 1, 1, 2, 3, 4)})"


def pad(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4, 5)) is None:
        return None
    mode = d.of("constant", "constant", "reflect", "replicate", "circular")
    dims = len(d.shape(x)) - 2 if mode != "constant" else d.of(1, 2)
    widths = tuple(d.of(0, 1, 2, *([-1] if mode == "constant" else [])) for _ in range(2 * max(dims, 1)))
    return f"F.pad({x}, {widths}{written(mode=mode, **({'value': 0.5} if mode == 'constant' else {}))})"


def resize(d: Draw) -> str | None:
    if (x := d.pick(3, 4, 5)) is None:
        return None
    n = len(d.shape(x)) - 2
    smooth = ("linear", "bilinear", "trilinear")[n - 1]
    mode = d.of("nearest", "nearest", smooth, smooth, "nearest-exact", *(["bicubic"] if n == 2 else []), "area")
    corners = {"align_corners": d.of(True, False)} if mode in (smooth, "bicubic") else {}
    to = {"scale_factor": d.of(2, 2, 1.5, 0.5, 3)} if d.rng.random() < 0.6 else {"size": d.sizes(n, 4, 5, 9)}
    return f"F.interpolate({x}{written(**to, mode=mode, **corners)})"


def shuffle(d: Draw) -> str | None:
    if (x := d.pick(3, 4)) is None:
        return None
    channels = d.shape(x)[1]
    groups = d.of(*(g for g in range(1, channels + 1) if channels % g == 0))
    return f"F.channel_shuffle({x}, {groups})"


# ---- Several values -------------------------------------------------------------------------------------------------


def _other(d: Draw, x: str) -> str | None:
    """A value that x can be broadcast with, not always of x's rank; now and then a number or a slice of x."""

    def fits(shape: tuple[int, ...]) -> bool:
        return all(a == b or 1 in (a, b) for a, b in zip(reversed(shape), reversed(d.shape(x)), strict=False))

    found = [name for name, value in d.values.items() if value.is_floating_point() and fits(tuple(value.shape))]
    return d.of(*found, *found, f"{x}.mean(-1, keepdim=True)", f"{x}[:1]", d.of("0.5", "2", "-1.5"))  # type: ignore[no-any-return]


def arithmetic(d: Draw) -> str | None:
    if (x := d.pick()) is None:
        return None
    y = _other(d, x)
    return d.of(  # type: ignore[no-any-return]
        f"{x} + {y}", f"{x} - {y}", f"{x} * {y}", f"{y} - {x}", f"{y} + {x}", f"torch.add({x}, {y}, alpha={d.of(2, 0.5, -1)})",
        f"torch.sub({x}, {y}, alpha=2)", f"{x} / (1 + {y} * {y})", f"torch.maximum({x}, {x} * 0.5)",
    )  # fmt: skip


def selection(d: Draw) -> str | None:
    if (x := d.pick()) is None:
        return None
    y = _other(d, x)
    return d.of(  # type: ignore[no-any-return]
        f"torch.where({x} > {d.of(0, 0.3)}, {x}, {y})", f"({x} > {y}).float()", f"({x} * 3).to(torch.int64)",
        f"({x} <= 0.1).to({x}.dtype) * {x}", f"{x}.masked_fill({x} < -0.2, 0.25)", f"({x} * 2).int().float() * 0.5 + {x}",
    )  # fmt: skip


def joined(d: Draw) -> str | None:
    if (x := d.pick(1, 2, 3, 4, 5)) is None:
        return None
    shape = d.shape(x)
    dim = d.rng.randrange(-len(shape), len(shape)) if d.rng.random() < 0.4 else min(1, len(shape) - 1)

    def fits(other: tuple[int, ...]) -> bool:
        return len(other) == len(shape) and all(
            a == b for n, (a, b) in enumerate(zip(other, shape, strict=True)) if n != dim % len(shape)
        )

    others = [name for name, v in d.values.items() if v.dtype == d.values[x].dtype and fits(tuple(v.shape))]
    same = [name for name in others if d.shape(name) == shape]
    return d.of(  # type: ignore[no-any-return]
        f"torch.cat([{x}, {d.of(*others)}], {dim})", f"torch.cat([{d.of(*others)}, {x}, {d.of(*others)}], {dim})",
        f"torch.stack([{x}, {d.of(*same)}], {dim})", f"torch.cat([{x}, {x} * 0.5], {dim})",
    )  # fmt: skip


def product(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4)) is None:
        return None
    turned = f"{x}.transpose(-1, -2)"
    fits = [n for n, v in d.values.items() if v.is_floating_point() and v.dim() > 1 and v.shape[-2] == d.shape(x)[-1]]
    y = d.of(turned, *fits)
    return d.of(
        f"torch.matmul({x}, {y}) * 0.3", f"{turned} @ {x} * 0.3", f"torch.bmm({x}, {turned})", f"(0.5 * {x}) @ {y}"
    )  # type: ignore[no-any-return]


# ---- Moves ----------------------------------------------------------------------------------------------------------


def parted(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4)) is None:
        return None
    dim = d.of(*range(1, len(d.shape(x))))
    size = d.shape(x)[dim]
    first = d.rng.randrange(1, size) if size > 1 else 1
    lengths = [first, size - first] if size > 1 else [1]
    return d.of(  # type: ignore[no-any-return]
        f"{x}.split({lengths}, {dim})", f"{x}.chunk({d.of(2, 3)}, {dim})", f"{x}.split({d.of(1, 2, 3)}, {dim})",
        f"{x}.unbind({dim})", f"{x}.tensor_split({d.of(2, 3)}, {dim})",
    )  # fmt: skip


def sliced(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4, 5)) is None:
        return None
    cuts = [":", *(d.of(":", ":", "::2", "1:", ":-1", "1::3", "-3:", f"{n - 1}", "None") for n in d.shape(x)[1:])]
    return f"{x}[{', '.join(cuts)}]"


def rearranged(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4, 5)) is None:
        return None
    shape = d.shape(x)
    order = [0, *d.rng.sample(range(1, len(shape)), len(shape) - 1)]
    rest = math.prod(shape[1:])
    divisors = [k for k in (1, 2, 3, 4, 5) if rest % k == 0]
    k = d.of(*divisors)
    return d.of(  # type: ignore[no-any-return]
        f"{x}.permute({order})", f"{x}.flatten({d.of(0, 1, 1, 1)})", f"{x}.reshape({x}.shape[0], {k}, -1)",
        f"{x}.reshape(-1, {k}, {rest // k})", f"{x}.transpose(1, -1)", f"{x}.unsqueeze({d.of(0, 1, -1)})", f"{x}.squeeze()",
        f"{x}.squeeze({d.of(0, 1, -1)})", f"{x}.flatten(2).transpose(1, 2)", f"{x}.view({x}.size(0), -1)",
    )  # fmt: skip


def reduced(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4, 5)) is None:
        return None
    rank = len(d.shape(x))
    dims = d.of(
        tuple(range(2, rank)) or (1,), (1,), (-1,), tuple(sorted(d.rng.sample(range(rank), d.of(1, min(2, rank)))))
    )
    how = d.of("mean", "mean", "sum", "amax", "amin", "std", "var")
    return f"{x}.{how}({dims}, keepdim={d.of(True, False)})"


def normalized(d: Draw) -> str | None:
    if (x := d.pick(2, 3, 4)) is None:
        return None
    return f"F.{d.of('softmax', 'softmax', 'log_softmax', 'normalize')}({x}, dim={d.of(1, -1)})"


# ---- Calls that tests of operators have -----------------------------------------------------------------------------


@cache
def lambdas() -> dict[str, list[tuple[list[str], ast.expr]]]:
    """Lists of calls in `operators.py`: for each call its parameters and its expression."""
    found: dict[str, list[tuple[list[str], ast.expr]]] = {}
    for line in ast.parse(Path(calls.__file__).read_text()).body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.List) and isinstance(line.target, ast.Name):
            found[line.target.id] = [_call(element) for element in line.value.elts]
    return found


def _call(element: ast.expr) -> tuple[list[str], ast.expr]:
    if isinstance(element, ast.Lambda):
        return [a.arg for a in element.args.args], element.body
    return [], element


def listed(name: str, arity: int, *, wrap: str = "{}", floating: bool = True) -> Kind:
    """One of a list's calls, of values of ours."""

    def kind(d: Draw) -> str | None:
        if (x := d.pick(floating=floating)) is None:
            return None
        given = [wrap.format(x), *([_other(d, x)] if arity == 2 else [])]
        if name == "INDEXING":
            given[1:] = ["torch.tensor([1, -1])"]
        parameters, body = d.of(*lambdas()[name])
        if not parameters:
            return f"{ast.unparse(body)}({', '.join(map(str, given))})"
        return ast.unparse(_Substituted(dict(zip(parameters, map(str, given), strict=True))).visit(_copy(body)))

    return kind


class _Substituted(ast.NodeTransformer):
    def __init__(self, given: dict[str, str]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.given[node.id], mode="eval").body if node.id in self.given else node


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body


KINDS: dict[str, Kind] = {
    "convolution": convolution, "transposed convolution": transposed_convolution, "linear": linear, "batch norm": batch_norm,
    "other norm": other_norm, "prelu": prelu, "recurrent": recurrent, "embedding": embedding, "attention": attention,
    "again": again, "average pool": average_pool, "max pool": max_pool, "adaptive pool": adaptive_pool, "pad": pad,
    "resize": resize, "shuffle": shuffle, "arithmetic": arithmetic, "selection": selection, "joined": joined,
    "product": product, "parted": parted, "sliced": sliced, "rearranged": rearranged, "reduced": reduced,
    "normalized": normalized, "activation": listed("ACTIVATIONS", 1), "unary": listed("UNARY", 1),
    "unary of positive": listed("UNARY_POSITIVE", 1, wrap="({}.abs() + 0.1)"), "sums": listed("SUMS", 2),
    "comparison": listed("COMPARISONS", 2), "quotient": listed("QUOTIENTS", 2), "reduction": listed("REDUCTIONS", 1),
    "statistic": listed("STATISTICS", 1), "order": listed("ORDERS", 1), "move": listed("MOVES", 1),
    "move of integers": listed("MOVES", 1, floating=False), "image": listed("IMAGES", 1), "indexing": listed("INDEXING", 2),
}  # fmt: skip
WEIGHTS = {
    "convolution": 5.0,
    "linear": 3.0,
    "batch norm": 2.5,
    "activation": 4.0,
    "arithmetic": 3.0,
    "joined": 2.0,
    "again": 2.0,
}
WEIGHTS |= dict.fromkeys(["recurrent", "unary", "quotient", "order", "move of integers", "unary of positive"], 0.4)
OF_IMAGES = dict.fromkeys(KINDS, 0.03) | {  # what convolutional networks are made of
    "convolution": 8.0, "batch norm": 5.0, "activation": 5.0, "arithmetic": 4.0, "joined": 2.0, "again": 1.5, "prelu": 1.0,
    "transposed convolution": 1.0, "average pool": 1.5, "max pool": 1.5, "adaptive pool": 0.5, "pad": 1.0, "resize": 1.0,
    "shuffle": 0.7, "parted": 1.0, "linear": 1.0, "sums": 1.0,
}  # fmt: skip
