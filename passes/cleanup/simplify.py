"""Remove what computes nothing, compute what never changes, and write the rest the way integer kernels match it.

    identities          dropout in eval mode, clone, contiguous, casts, views, slices, pads and permutations that change nothing
    constant folding    a call that reads only constants becomes a constant, unless that would be larger than what it reads
    global pooling      mean over all spatial dimensions, and average pooling with a window as large as the image,
                        become adaptive average pooling to size 1 (plus flatten where the dimensions go)
    adaptive pooling    to another size that divides the image's becomes average pooling
    activations         in any spelling become the operators: gelu, mish, hard_sigmoid (`name_activations.py`)
    scalars             x - c becomes x + (-c), x / c becomes x * (1 / c)
    equal calls         the same operator on the same arguments is computed once

Keeps:  outputs, up to float rounding; a constant folded from trainable weights is trainable.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir import constants
from graphopt.ir.binary import Binary
from graphopt.ir.calls import argument, is_float, operand, same_sizes, shape, value
from graphopt.ir.equal_calls import merge_equal_calls
from graphopt.ir.facts import FLOAT_REFERENCE
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Pool
from graphopt.ir.linears import take_bias, weight_of, write_linear
from graphopt.ir.masks import mask_of
from graphopt.ir.ops import aten, family, info
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import quantizers
from graphopt.passes.cleanup.name_activations import name_activation

CASTS = (aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.to.device)


@dataclass(frozen=True)
class Simplify:
    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        changes: list[Change] = []
        for node in graph.calls():
            site = graph.site(node)
            for rule in RULES:
                if what := rule(graph, node):
                    changes.append(Change(site, what))
                    break
        if quantizers(graph):
            return changes  # equal calls there may have grids of their own
        merged = merge_equal_calls(graph, operator.is_)
        return changes + [Change(site, f"computed once: the same as {twin}") for site, twin in merged]


Rule = Callable[[Graph, Node], str]


def drop_identity(graph: Graph, node: Node) -> str:
    if not isinstance(value(node), Tensor) or not node.args or not isinstance(node.args[0], Node):
        return ""
    source = node.args[0]
    if not isinstance(value(source), Tensor) or value(source).dtype != value(node).dtype:
        return ""
    if not (_is_identity(node) or node.target in CASTS):
        return ""
    name = node.target.__name__.split(".")[0]  # type: ignore[union-attr]
    graph.replace(node, source)
    return f"{name} removed: it changes nothing"


def _is_identity(node: Node) -> bool:
    kind = family(node)
    if kind == "identity":
        return "dropout" not in str(node.target) or not argument(node, "train")
    if not (info(node).moves or kind == "pad") or not same_sizes(shape(node), shape(operand(node))):
        return False
    if kind in ("reshape", "expand", "slice"):
        return (
            node.target is not aten.index_select.default
        )  # the same sizes in the same order; an index may have another
    if kind == "transpose" and node.target is aten.permute.default:
        return list(argument(node, "dims")) == list(range(len(shape(node))))
    if kind == "pad":
        return not any(argument(node, "pad"))
    return False


def fold_constant(graph: Graph, node: Node) -> str:
    """Compute a call that reads only constants."""
    if mask_of(graph, node):
        return ""  # lives until a pass needs the weight as a constant
    name = constants.fold_constant(graph, node)
    return f"{name} computed once" if name else ""


def write_as_linear(graph: Graph, node: Node) -> str:
    """A product with a constant matrix, which may have been computed only now -> linear."""
    weight = weight_of(graph, node)
    if weight is None or graph.fact(weight, FLOAT_REFERENCE) is not None:
        return ""  # what a constant was before would be lost
    take_bias(graph, write_linear(graph, node)[0])
    return "a product with a constant matrix written as a linear layer"


def pool_globally(graph: Graph, node: Node) -> str:
    """mean over the image -> adaptive_avg_pool(1), which has an integer kernel."""
    kind = family(node)
    if kind not in ("mean", "average_pool") or not is_float(node):
        return ""
    source = operand(node)
    dims = len(shape(source))
    if kind == "mean":
        reduced = {d % dims for d in argument(node, "dim") or []} if dims else set()
        if reduced != set(range(2, dims)) or argument(node, "dtype") is not None:
            return ""
        keep = bool(argument(node, "keepdim"))
    else:
        pool = Pool.of(node)
        assert pool is not None
        whole = pool.kernel == shape(source)[2:] and shape(node)[2:] == (1,) * (dims - 2)
        if not whole or any(pool.padding) or pool.rounds_up:
            return ""
        if argument_or_none(node, "divisor_override") is not None:
            return ""
        keep = True
    if dims not in (3, 4):
        return ""
    adaptive = aten.adaptive_avg_pool2d.default if dims == 4 else aten.adaptive_avg_pool1d.default
    pooled = graph.call(adaptive, source, [1] * (dims - 2), before=node)
    pooled.meta["val"] = value(source).new_empty([*shape(source)[:2], *[1] * (dims - 2)])
    if not keep:
        pooled = graph.call(aten.flatten.using_ints, pooled, 1, before=node)
        pooled.meta["val"] = value(node)
    graph.replace(node, pooled)
    return "spatial mean written as global average pooling"


def pool_in_windows(graph: Graph, node: Node) -> str:
    """adaptive_avg_pool to sizes that divide the image's -> avg_pool, which has an integer kernel."""
    if family(node) != "adaptive_average_pool":
        return ""
    dims = len(argument(node, "output_size"))
    image, into = shape(operand(node))[-dims:], shape(node)[-dims:]
    if not all(isinstance(n, int) and n % m == 0 for n, m in zip(image, into, strict=True)):
        return ""
    window = [n // m for n, m in zip(image, into, strict=True)]
    pool = aten.avg_pool2d.default if len(window) == 2 else aten.avg_pool1d.default
    pooled = graph.call(pool, node.args[0], window, window, before=node)
    pooled.meta["val"] = value(node)
    graph.replace(node, pooled)
    return f"adaptive average pooling written with windows of {'x'.join(map(str, window))}"


def argument_or_none(node: Node, name: str) -> Any:
    try:
        return argument(node, name)
    except KeyError:
        return None


def turn_scalar(graph: Graph, node: Node) -> str:
    """x - c -> x + (-c);  x / c -> x * (1 / c): additions and products have integer kernels."""
    binary = Binary.of(node)
    if binary is None or (scalar := binary.number) is None or not is_float(node) or not is_float(binary.left):
        return ""
    if binary.kind == "sub" and argument(node, "alpha") == 1:
        new = graph.call(aten.add.Tensor, binary.left, -scalar, before=node)
    elif binary.kind == "div" and scalar:
        new = graph.call(aten.mul.Tensor, binary.left, 1 / scalar, before=node)
    else:
        return ""
    new.meta["val"] = value(node)
    graph.replace(node, new)
    return (
        "subtraction of a scalar written as addition"
        if binary.kind == "sub"
        else "division by a scalar written as product"
    )


RULES: tuple[Rule, ...] = (
    drop_identity,
    fold_constant,
    write_as_linear,
    name_activation,
    pool_globally,
    pool_in_windows,
    turn_scalar,
)
