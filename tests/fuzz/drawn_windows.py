"""Functions of windows and images, drawn: pools, pads, resizes, shuffles."""

from __future__ import annotations

from drawing import Draw, written


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
