"""The first convolution of a network, rearranged so that integer kernels read whole words.

The integer kernel gathers its operands pixel by pixel, C bytes at a time; with the three channels of an image that, not the
arithmetic, is what the first layer takes its time for. Two rearrangements, both of which keep every value:

    a fourth channel    of zeros, met by weights of zero: 4 bytes at a time (a 3 x 3 stem takes half as long)
    pairs of columns    a wide kernel of stride 2 moves over the image two columns at a time; with the columns of a pair as
                        channels it moves one pair at a time, 8 bytes each (a 7 x 7 stem takes four fifths):

                        image [N, C, H, W]   ->  pairs [N, 2 C, H, W/2]       channel (column, c) of a pair
                        weight [O, C, k, k]  ->  [O, 2 C, k, k'],  k' = ceil((k + lead) / 2),  lead = padding mod 2

                        Columns of a window in front of the kernel, and behind it, get weights of zero. In the runtime's
                        channels-last layout the rearrangement moves nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, Layer
from graphopt.ir.ops import aten
from graphopt.lowering.qdq import Q

WORD = 4  # bytes
WIDE = 7  # kernels from which gathering pairs pays


def read_whole_words(graph: Graph, node: Node) -> None:
    """Rearrange this convolution of a deployed graph, if it reads the codes of an image of up to four channels."""
    layer = Layer.of(node)
    if layer is None or not _fits(graph, layer):
        return
    if shape(layer.input)[1] == WORD and not _takes_pairs(layer):
        return  # words already
    weights: Any = layer.weight
    source: Any = layer.input
    codes, *grid = source.args
    missing = WORD - shape(source)[1]
    weight = F.pad(graph.tensor(weights.args[0]), (0, 0, 0, 0, 0, missing))
    image = codes
    if missing:
        image = graph.call(aten.constant_pad_nd.default, codes, [0, 0, 0, 0, 0, missing], grid[1], before=node)
    stride, padding = list(layer.stride), list(layer.padding)
    if _takes_pairs(layer):
        height, width = shape(source)[2:]
        pairs, front, behind, lead = _span(width, weight.shape[3], padding[1])
        image = graph.call(aten.permute.default, image, [0, 2, 3, 1], before=node)
        image = graph.call(aten.reshape.default, image, [-1, height, width // 2, 2 * WORD], before=node)
        image = graph.call(aten.permute.default, image, [0, 3, 1, 2], before=node)
        image = graph.call(aten.constant_pad_nd.default, image, [front, behind, 0, 0], grid[1], before=node)
        weight, stride, padding = sorted_by_pair(weight, pairs, lead), [stride[0], 1], [padding[0], 0]
    image = graph.call(Q.dequantize_per_tensor.default, image, *grid, before=node)
    graph.set_constant(weights, 0, weight)
    bias = node.args[BIAS] if len(node.args) > BIAS else None
    position = (stride, padding, list(layer.dilation))
    graph.replace(node, graph.call(aten.conv2d.default, image, weights, bias, *position, before=node))


def _fits(graph: Graph, layer: Layer) -> bool:
    if layer.kind != "conv" or layer.dims != 2 or layer.groups != 1 or max(shape(layer.weight)[2:]) == 1:
        return False
    bytes_ = {torch.int8, torch.uint8}  # Pad has no kernel for wider codes
    from_codes = layer.input.target is Q.dequantize_per_tensor.default and layer.input.args[5] in bytes_
    stored = (
        layer.weight.op == "call_function" and graph.is_constant(layer.weight.args[0]) and len(layer.weight.users) == 1
    )
    alone = len(layer.input.users) == 1
    return bool(from_codes and stored and alone and shape(layer.input)[1] <= WORD)


def _takes_pairs(layer: Layer) -> bool:
    height, width = shape(layer.input)[2:]
    even = isinstance(height, int) and isinstance(width, int) and width % 2 == 0
    return even and layer.stride[1] == 2 and layer.dilation == (1, 1) and shape(layer.weight)[3] >= WIDE


def _span(size: int, kernel: int, padding: int) -> tuple[int, int, int, int]:
    """In pairs: the kernel's width, the padding in front and behind; in columns: the zeros in front of the kernel."""
    front = (padding + 1) // 2
    lead = 2 * front - padding
    pairs = (kernel + lead + 1) // 2
    outputs = (size + 2 * padding - kernel) // 2 + 1
    return pairs, front, outputs + pairs - 1 - front - size // 2, lead


def sorted_by_pair(weight: Tensor, pairs: int, lead: int) -> Tensor:
    """[out, C, k, k] -> [out, 2 C, k, pairs], channels in the order (column, c) of a pair."""
    out, channels, tall, wide = weight.shape
    padded = F.pad(weight, (lead, 2 * pairs - lead - wide)).reshape(out, channels, tall, pairs, 2)
    return padded.permute(0, 4, 1, 2, 3).reshape(out, 2 * channels, tall, pairs).contiguous()
