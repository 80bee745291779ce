"""Views of layers, pools and norms: named fields in place of positions in `node.args`.

    conv = Layer.of(node)          # None where the node is no convolution or linear layer
    conv.weight, conv.bias         # constants' nodes
    conv.groups, conv.padding

A view only reads; the graph's own methods edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import argument, is_float, listed, operand, shape, value
from graphopt.ir.ops import family, info, registered

WEIGHT, BIAS = 1, 2  # argument positions, the same for every layer


def convolution(dims: int, *, transposed: bool = False) -> Any:
    """The operator that convolves over so many dimensions; None where there is none."""
    kind = "conv_transpose" if transposed else "conv"
    return next(iter(registered(lambda info: info.family == kind and info.dims == dims)), None)


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
        found = info(node)
        if not found.layer or found.family is None:
            return None
        return cls(node, found.family, found.dims, argument(node, "groups") if found.dims else 1)

    @property
    def input(self) -> Node:
        return operand(self.node)

    @property
    def weight(self) -> Node:
        return operand(self.node, WEIGHT)

    @property
    def bias(self) -> Node | None:
        bias: Node | None = argument(self.node, "bias")
        return bias

    @property
    def stored_bias(self) -> tuple[Node, Node] | None:
        """The call that reads the constant at the root of the bias, and that constant: behind its quantizer and shift, if any."""
        reader, value = self.node, self.bias
        while value is not None and value.op != "get_attr":
            if not value.args or not isinstance(value.args[0], Node):
                return None
            reader, value = value, value.args[0]
        return (reader, value) if value is not None else None

    @property
    def stride(self) -> tuple[int, ...]:
        return _each(self, "stride") if self.dims else ()

    @property
    def padding(self) -> tuple[int, ...]:
        return _each(self, "padding") if self.dims else ()

    @property
    def dilation(self) -> tuple[int, ...]:
        return _each(self, "dilation") if self.dims else ()

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Of a transposed convolution; zeros for any other layer."""
        return _each(self, "output_padding") if self.kind == "conv_transpose" else (0,) * self.dims

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
class Pool:
    """A maximum or mean over windows; of adaptive pools, which have no windows of their own, there is no view."""

    node: Node
    kind: str
    dims: int

    @classmethod
    def of(cls, node: Any) -> Pool | None:
        found = info(node)
        if not found.pools or not found.dims or found.family is None:
            return None
        return cls(node, found.family, found.dims)

    @property
    def input(self) -> Node:
        return operand(self.node)

    @property
    def kernel(self) -> tuple[int, ...]:
        return _each(self, "kernel_size")

    @property
    def stride(self) -> tuple[int, ...]:
        """That of the windows where none is given."""
        return _each(self, "stride") or self.kernel

    @property
    def padding(self) -> tuple[int, ...]:
        return _each(self, "padding")

    @property
    def dilation(self) -> tuple[int, ...]:
        """Ones for means."""
        return _each(self, "dilation") if self.kind == "max_pool" else (1,) * self.dims

    @property
    def rounds_up(self) -> bool:
        """Whether a last window may begin where it does not fit."""
        return bool(argument(self.node, "ceil_mode"))

    @property
    def includes_padding(self) -> bool:
        """Whether a mean counts the zeros around the image."""
        return self.kind == "average_pool" and bool(argument(self.node, "count_include_pad"))


def _each(call: Layer | Pool, name: str) -> tuple[int, ...]:
    """An argument for each dimension, where one may stand for all."""
    found = listed(argument(call.node, name))
    return tuple(found * call.dims if len(found) == 1 else found)


def channels_last(node: Node) -> bool:
    """Whether channels are the last dimension of a value, as those of sequences [N, T, C]; else they are the second.

    Three dimensions alone leave that open. They are a signal [N, C, T] where a convolution of one dimension, or a batch norm,
    gives it, however many functions of single values and sums are in between; a sequence otherwise.
    """
    if len(shape(node)) != 3:
        return False
    seen, open_ = {node}, [node]
    while open_:
        found = open_.pop(0)
        layer = Layer.of(found)
        if BatchNorm.of(found) is not None or (layer is not None and layer.kind != "linear"):
            return False
        if layer is not None or found.op != "call_function" or len(shape(found)) != 3:
            continue
        traits = info(found)
        if traits.pointwise or traits.pools or family(found) in ("add", "sub", "mul", "div", "concat"):
            sources = [source for source in found.all_input_nodes if source not in seen and is_float(source)]
            seen.update(sources)
            open_ += sources
    return True


@dataclass(frozen=True)
class BatchNorm:
    """An inference-mode batch norm with constant statistics."""

    node: Node

    @classmethod
    def of(cls, node: Any) -> BatchNorm | None:
        if family(node) != "batch_norm" or argument(node, "training"):
            return None
        norm = cls(node)
        given = (argument(node, name) for name in ("weight", "bias"))
        if not all(_is_constant(argument(node, name)) for name in ("running_mean", "running_var")):
            return None  # without running statistics it normalises by the batch
        return norm if all(a is None or _is_constant(a) for a in given) else None

    @property
    def input(self) -> Node:
        return operand(self.node)

    @property
    def weight(self) -> Node | None:
        found: Node | None = argument(self.node, "weight")
        return found

    @property
    def bias(self) -> Node | None:
        found: Node | None = argument(self.node, "bias")
        return found

    @property
    def mean(self) -> Node:
        found: Node = argument(self.node, "running_mean")
        return found

    @property
    def var(self) -> Node:
        found: Node = argument(self.node, "running_var")
        return found

    @property
    def eps(self) -> float:
        return float(argument(self.node, "eps"))


def _is_constant(found: Any) -> bool:
    return isinstance(found, Node) and found.op == "get_attr"
