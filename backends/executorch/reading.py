"""What of a program is computed in integer, by the calls that were read back from it; and what nothing here can compute."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx.node import Node

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.report import FloatOperator
from graphopt.backends.executorch.compiling import INTEGER, PORTABLE, Call
from graphopt.backends.executorch.runtime import REMEDY
from graphopt.ir.calls import argument, operand, shape
from graphopt.ir.cost import layer_macs
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError

SHOWN = 5  # operators that an error lists
CONVERSIONS = frozenset({"quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel"})
MOVES = frozenset({
    "view_copy", "permute_copy", "unsqueeze_copy", "squeeze_copy", "slice_copy", "select_copy", "expand_copy", "cat", "clone",
    "split_with_sizes_copy", "constant_pad_nd", "_clone_dim_order", "_to_dim_order_copy", "upsample_nearest2d", "sym_size",
})  # fmt: skip


def check_kernels(graph: Graph, calls: Sequence[Call], known: frozenset[str]) -> None:
    """Whether a runtime can compute the program that was exported from a graph.

    Args:
        calls: of the program. known: operators that the runtime has kernels for, such as `aten::add.out`.

    Raises:
        InputError: it has none for some calls; names them, with the layers they come from.
    """
    sites = _sites(graph)
    kernels = {name.partition("::")[2].partition(".")[0] for name in known} | {"sym_size"}
    missing = [
        f"{sites.get(call.name, call.name)} ({call.operator})"
        for call in calls
        if call.where == PORTABLE and call.kind not in kernels
    ]
    if named := list(dict.fromkeys(missing)):
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        raise InputError(f"ExecuTorch's runtime has no kernel for {', '.join(named[:SHOWN])}{more}; {REMEDY}")


def check_operators(graph: Graph) -> None:
    """Whether the operators of a captured graph have kernels that compute what they mean.

    Raises:
        InputError: a layer over three dimensions, or a bilinear resizing whose factor XNNPACK would replace by another; names it.
    """
    for node in graph.calls():
        layer = Layer.of(node)
        if layer is not None and layer.dims > 2:
            raise InputError(
                f"{graph.site(node)}: ExecuTorch's runtime has no kernel for convolutions over {layer.dims} dimensions; {REMEDY}"
            )
        if node.target is aten.upsample_bilinear2d.vec and not _by_whole_pixels(node):
            factors = argument(node, "scale_factors")
            raise InputError(
                f"{graph.site(node)}: XNNPACK resizes by the ratio of sizes, which is not scale_factor={factors} here; give "
                "size=..., or recompute_scale_factor=True"
            )


def _by_whole_pixels(node: Node) -> bool:
    """Whether the factors of a bilinear resizing are the ratios of sizes."""
    factors = argument(node, "scale_factors")
    if factors is None or argument(node, "align_corners"):
        return True
    sizes = zip(shape(operand(node))[-2:], shape(node)[-2:], factors, strict=True)
    return all(before * factor == after for before, after, factor in sizes)


def _sites(graph: Graph) -> dict[str, str]:
    return {node.name: graph.site(node) for node in graph.calls()}


def audited(graph: Graph, calls: Sequence[Call], samples: int) -> Audit:
    """What is computed in integer of the program that was exported from a graph.

    Args:
        calls: of the program. samples: of the batch, of which the audit counts one.
    """
    sites = _sites(graph)
    macs = {node.name: count // samples for node, count in layer_macs(graph).items()}
    nodes = {node.name: node for node in graph.calls()}
    found = Audit(total_macs=sum(macs.values()))
    for call in calls:
        found.operators[call.operator] = found.operators.get(call.operator, 0) + 1
        if call.kind in CONVERSIONS | MOVES:
            continue
        node, site = nodes.get(call.name), sites.get(call.name, call.name)
        own = macs.pop(call.name, 0)
        if call.where != INTEGER:
            found.floating.append(FloatOperator(site, call.kind, _reason(graph, node, call), own))
        elif own:
            found.integer.append(site)
            found.integer_macs += own
    return found


def _reason(graph: Graph, node: Node | None, call: Call) -> str:
    left = graph.fact(node, LEFT) if node is not None else None
    if left is not None:
        return str(left)
    return (
        "XNNPACK has no kernel for it"
        if call.where == PORTABLE
        else "it has no integer kernel, or its values are float"
    )
