"""The kinds of calls that are drawn, and how often: in networks of any operators, and in those of images."""

from __future__ import annotations

from drawing import Kind
from drawn_calls import listed
from drawn_layers import (
    again,
    attention,
    batch_norm,
    convolution,
    embedding,
    linear,
    other_norm,
    prelu,
    recurrent,
    residual,
    transposed_convolution,
)  # fmt: skip
from drawn_values import arithmetic, joined, normalized, parted, product, rearranged, reduced, selection, sliced
from drawn_windows import adaptive_pool, average_pool, max_pool, pad, resize, shuffle

KINDS: dict[str, Kind] = {
    "convolution": convolution, "transposed convolution": transposed_convolution, "linear": linear, "batch norm": batch_norm,
    "other norm": other_norm, "prelu": prelu, "recurrent": recurrent, "embedding": embedding, "attention": attention,
    "again": again, "residual": residual, "average pool": average_pool, "max pool": max_pool, "adaptive pool": adaptive_pool,
    "pad": pad, "resize": resize, "shuffle": shuffle, "arithmetic": arithmetic, "selection": selection, "joined": joined,
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
    "transposed convolution": 1.0, "residual": 1.5, "average pool": 1.5, "max pool": 1.5, "adaptive pool": 0.5, "pad": 1.0,
    "resize": 1.0, "shuffle": 0.7, "parted": 1.0, "linear": 1.0, "sums": 1.0,
}  # fmt: skip
