"""Functions of one value or several, drawn: arithmetic, joins, products, parts, other orders and sizes, reductions."""

from __future__ import annotations

import math

from drawing import Draw, other


def arithmetic(d: Draw) -> str | None:
    if (x := d.pick()) is None:
        return None
    y = other(d, x)
    return d.of(  # type: ignore[no-any-return]
        f"{x} + {y}", f"{x} - {y}", f"{x} * {y}", f"{y} - {x}", f"{y} + {x}", f"torch.add({x}, {y}, alpha={d.of(2, 0.5, -1)})",
        f"torch.sub({x}, {y}, alpha=2)", f"{x} / (1 + {y} * {y})", f"torch.maximum({x}, {x} * 0.5)",
    )  # fmt: skip


def selection(d: Draw) -> str | None:
    if (x := d.pick()) is None:
        return None
    y = other(d, x)
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
