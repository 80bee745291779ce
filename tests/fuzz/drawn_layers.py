"""Modules with weights, drawn: layers, norms, recurrent and attention layers, and those that are called again."""

from __future__ import annotations

from drawing import Draw, written


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


def residual(d: Draw) -> str | None:
    """Two branches of one shape that are added, each clipped or not, and the sum, too."""
    if (x := d.pick(3, 4)) is None:
        return None
    n, channels = len(d.shape(x)) - 2, d.shape(x)[1]
    out = d.of(2, 3, 5, 8)
    branches = [
        f"{d.part(f'nn.Conv{n}d({channels}, {out}, {size}, padding={size // 2})')}({x})"
        for size in (d.of(1, 3), d.of(1, 3))
    ]
    a, b = (d.of("{}", "F.relu({})", "F.relu6({})").format(branch) for branch in branches)
    return d.of("{}", "F.relu({})", "F.hardtanh({}, -0.5, 2.0)").format(f"{a} + {b}")


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
