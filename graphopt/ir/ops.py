"""What each ATen operator means to a pass: one table of families, and typed views that make pass code read like a textbook.

    conv = Layer.of(node)          # None where the node is no convolution or linear layer
    conv.weight, conv.bias         # constants' nodes
    conv.groups, conv.padding

A view only reads; the graph's own methods edit.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

aten = torch.ops.aten

CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
TRANSPOSED = {aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3}

FAMILY: dict[Any, str] = {
    **dict.fromkeys(CONVS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    aten.linear.default: "linear",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.batch_norm.default: "batch_norm",
    # activations
    aten.relu.default: "relu",
    aten.relu6.default: "clamp",
    aten.hardtanh.default: "clamp",
    aten.clamp.default: "clamp",
    aten.clamp_min.default: "clamp",
    aten.clamp.Tensor: "channel_clamp",
    aten.leaky_relu.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "hard_sigmoid",
    aten.hardswish.default: "hard_swish",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.tanh.default: "tanh",
    aten.softmax.int: "softmax",
    # elementwise
    aten.add.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.sub.Tensor: "sub",
    aten.div.Tensor: "div",
    # joins and pools
    aten.cat.default: "concat",
    aten.max_pool1d.default: "max_pool",
    aten.max_pool2d.default: "max_pool",
    aten.max_pool3d.default: "max_pool",
    aten.avg_pool1d.default: "average_pool",
    aten.avg_pool2d.default: "average_pool",
    aten.adaptive_avg_pool1d.default: "adaptive_average_pool",
    aten.adaptive_avg_pool2d.default: "adaptive_average_pool",
    aten.mean.dim: "mean",
    # data movement: values are neither changed nor mixed
    **dict.fromkeys(
        [
            aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default,
            aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten._unsafe_view.default,
        ],
        "reshape",
    ),
    **dict.fromkeys([aten.transpose.int, aten.permute.default, aten.t.default, aten.numpy_T.default], "transpose"),
    **dict.fromkeys([aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.index_select.default], "slice"),
    **dict.fromkeys([aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default], "split"),
    **dict.fromkeys([aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default], "shuffle"),
    **dict.fromkeys([aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default], "resize_nearest"),
    aten.upsample_bilinear2d.vec: "resize_linear",
    aten.constant_pad_nd.default: "pad",
    aten.pad.default: "pad",
    aten.expand.default: "expand",
    aten.flip.default: "flip",
    aten.roll.default: "roll",
    aten.stack.default: "stack",
    operator.getitem: "getitem",
    # nothing at all
    **dict.fromkeys(
        [
            aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.clone.default,
            aten.contiguous.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
        ],
        "identity",
    ),
}  # fmt: skip

MOVEMENT = frozenset(
    {
        "reshape",
        "transpose",
        "slice",
        "split",
        "shuffle",
        "resize_nearest",
        "expand",
        "flip",
        "roll",
        "getitem",
        "identity",
    }
)
# f(s x) = s f(x) for every s > 0, channel by channel
HOMOGENEOUS = MOVEMENT | {
    "relu",
    "leaky_relu",
    "prelu",
    "max_pool",
    "average_pool",
    "adaptive_average_pool",
    "resize_linear",
}


def family(node: Any) -> str | None:
    """The family of a call, None for anything unknown. Global average pooling is told from other adaptive pooling."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    name = FAMILY.get(node.target)
    if name == "adaptive_average_pool" and all(size == 1 for size in _listed(node.args[1])):
        return "global_average_pool"
    if name == "pad" and not _pads_zeros(node):
        return None
    if name in ("add", "sub") and argument(node, "alpha") != 1:
        return None
    if node.target is aten.avg_pool2d.default and argument(node, "divisor_override") is not None:
        return None  # no mean
    return name


def argument(node: Node, name: str) -> Any:
    """An argument by its schema name, its default where it is not given."""
    for position, spec in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if spec.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, spec.default_value)
    raise KeyError(f"{node.target} has no argument {name!r}")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _pads_zeros(node: Node) -> bool:
    if node.target is aten.pad.default and argument(node, "mode") != "constant":
        return False
    return not argument(node, "value")


def clamp_bounds(node: Node) -> tuple[float, float]:
    """The interval a relu-like call clips to; the whole line for any other call."""
    infinity = float("inf")
    if node.target is aten.relu.default:
        return 0.0, infinity
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target is aten.hardtanh.default:
        return float(argument(node, "min_val")), float(argument(node, "max_val"))
    if node.target is aten.clamp.default:
        low, high = argument(node, "min"), argument(node, "max")
        return -infinity if low is None else float(low), infinity if high is None else float(high)
    if node.target is aten.clamp_min.default:
        return float(argument(node, "min")), infinity
    return -infinity, infinity


def negative_slope(node: Node) -> float:
    """What a leaky relu multiplies negative values by."""
    return float(argument(node, "negative_slope"))


def value(node: Node) -> Any:
    """The fake value a node carries (shape and type without data)."""
    return node.meta.get("val")


def shape(node: Node) -> tuple[Any, ...]:
    """The shape of a node's value; a free batch size is a symbol."""
    return tuple(value(node).shape)


def is_float(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(value(node), Tensor) and value(node).dtype.is_floating_point


WEIGHT, BIAS = 1, 2  # argument positions, the same for every layer


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed convolution or linear layer.

    Weights have the layout [out, in / groups, *kernel] through `canonical` and `native`, whatever the operator's own is.
    """

    node: Node
    kind: str
    dims: int
    groups: int

    @classmethod
    def of(cls, node: Any) -> Layer | None:
        name = family(node)
        if name not in ("conv", "conv_transpose", "linear"):
            return None
        if name == "linear":
            return cls(node, name, 0, 1)
        return cls(node, name, {**CONVS, **TRANSPOSED}[node.target], argument(node, "groups"))

    @property
    def input(self) -> Node:
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def weight(self) -> Node:
        return self.node.args[WEIGHT]  # type: ignore[return-value]

    @property
    def bias(self) -> Node | None:
        return self.node.args[BIAS] if len(self.node.args) > BIAS else None  # type: ignore[return-value]

    @property
    def stored_bias(self) -> tuple[Node, Node] | None:
        """The call that reads the constant at the root of the bias, and that constant: behind its quantizer and shift, if any."""
        reader, value = self.node, self.bias
        while value is not None and value.op != "get_attr":
            if not value.args or not isinstance(value.args[0], Node):
                return None
            reader, value = value, value.args[0]
        return (reader, value) if value is not None else None

    def _pair(self, name: str) -> tuple[int, ...]:
        found = _listed(argument(self.node, name))
        return tuple(found * self.dims if len(found) == 1 else found)

    @property
    def stride(self) -> tuple[int, ...]:
        return self._pair("stride") if self.dims else ()

    @property
    def padding(self) -> tuple[int, ...]:
        return self._pair("padding") if self.dims else ()

    @property
    def dilation(self) -> tuple[int, ...]:
        return self._pair("dilation") if self.dims else ()

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Of a transposed convolution; zeros for any other layer."""
        return self._pair("output_padding") if self.kind == "conv_transpose" else (0,) * self.dims

    @property
    def out_channels(self) -> int:
        full = value(self.weight).shape
        return int(full[1] * self.groups if self.kind == "conv_transpose" else full[0])

    @property
    def in_channels(self) -> int:
        full = value(self.weight).shape
        return int(full[0] if self.kind == "conv_transpose" else full[1] * self.groups)

    @property
    def channel_dim(self) -> int:
        """The dimension of the output that counts its channels (from the front for convs, the last for linear)."""
        return len(shape(self.node)) - 1 - self.dims

    @property
    def weight_axis(self) -> int:
        """The axis of the native weight along which output channels lie (inside a group for transposed convs)."""
        return 1 if self.kind == "conv_transpose" else 0

    def canonical(self, weight: Tensor) -> Tensor:
        """Native layout -> [out, in / groups, *kernel]."""
        if self.kind != "conv_transpose":
            return weight
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.flatten(0, 1)

    def native(self, weight: Tensor) -> Tensor:
        """[out, in / groups, *kernel] -> native layout."""
        if self.kind != "conv_transpose":
            return weight
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.flatten(0, 1).contiguous()

    def over_outputs(self, vector: Tensor) -> Tensor:
        """[out] -> [out, 1, *1]: one value per output channel, to meet a canonical weight."""
        return vector.reshape(-1, 1, *[1] * self.dims)

    def over_inputs(self, vector: Tensor) -> Tensor:
        """[in] -> [out, in / groups, *1]: one value per input channel, to meet a canonical weight.

        Row o holds the values of the channels that output o reads: those of its group, all of them where there is one.

        Raises:
            RuntimeError: the vector has not one value per input channel.
        """
        groups, kernel = self.groups, [1] * self.dims
        rows = vector.reshape(groups, 1, self.in_channels // groups).expand(-1, self.out_channels // groups, -1)
        return rows.reshape(self.out_channels, -1, *kernel)

    def respond(self, weight: Tensor, constant: Tensor) -> Tensor:
        """What a canonical weight makes of an input whose channels are constant, bias and borders left out: [in] -> [out]."""
        return (weight * self.over_inputs(constant)).flatten(1).sum(1)


@dataclass(frozen=True)
class BatchNorm:
    """An inference-mode batch norm with constant statistics."""

    node: Node

    @classmethod
    def of(cls, node: Any) -> BatchNorm | None:
        if family(node) != "batch_norm" or argument(node, "training"):
            return None
        if not all(isinstance(a, Node) and a.op == "get_attr" for a in (node.args[3], node.args[4])):
            return None  # without running statistics it normalises by the batch
        if not all(a is None or (isinstance(a, Node) and a.op == "get_attr") for a in node.args[1:3]):
            return None
        return cls(node)

    @property
    def input(self) -> Node:
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def eps(self) -> float:
        return float(argument(self.node, "eps"))
