"""What is known about each operator, said once: a table from operators to their traits.

    info(node).moves               # traits of a call; of one that nobody registered, all are False
    family(node)                   # the name under which rules and targets know it: "conv", "relu", ...
    argument(node, "padding")      # an argument by its name, its default where it is not given
    register(target, OpInfo(...))  # an operator of your own

Analyses, passes and backends ask for traits and keep no lists of operators. What needs more than a trait is a rule, a function
(how channels go through a convolution, what bounds a sum has). The rules of torch's own operators are kept by the analysis that
they belong to (`graphopt.ir.rules`), those of an operator of your own in its entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import argument, listed, positions
from graphopt.targets.families import add_family
from graphopt.utils.errors import InputError

aten = torch.ops.aten
INFINITY = math.inf
RULES = ("channels", "scales", "interval", "distribution")  # the analyses that have rules
End = float | str  # of a clip: a number, or the name of the argument that holds it (None there: no end)


@dataclass(frozen=True)
class OpInfo:
    """The traits of an operator. Where one is not said, nothing is assumed, and the operator is left alone.

    Attributes:
        family: the name that rules and targets know it by; None: no rule does.
        layer: multiplies its first argument by a weight (second argument) and adds a bias (third).
        dims: the dimensions that the kernel of a layer or pool runs over.
        pointwise: f of each element of the first argument; other arguments are constants, for all elements or per channel.
        homogeneous: f(s x) = s f(x) for every s > 0, channel by channel.
        monotone: no element of the result falls where elements of the first argument rise.
        range: both ends of its values, whatever it reads.
        moves: values are neither changed nor mixed, but reordered, repeated or left out.
        selects: each element of the result is one of the first argument, by its place or as the largest.
        averages: each element of the result is a mean of elements of the first argument, with weights that add up to one.
        within_channels: each channel (dimension 1) is computed from that channel alone, its number and place unchanged.
        pools: what of a channel's window.
        fusable: clips, so that the ends of a quantizer's grid can do it.
        clips: the ends of a clip that are the same for all channels.
        training_flag: the argument that switches training behaviour on.
        refine: for operators that mean something else by their arguments: the traits of one call.
        rules: what analyses do with the operator, by their names in `RULES`; `docs/internals/an-operator.md` shows each.
    """

    family: str | None
    layer: bool = False
    dims: int = 0
    pointwise: bool = False
    homogeneous: bool = False
    monotone: bool = False
    range: tuple[float, float] | None = None
    moves: bool = False
    selects: bool = False
    averages: bool = False
    within_channels: bool = False
    pools: bool = False
    fusable: bool = False
    clips: tuple[End, End] | None = None
    training_flag: str | None = None
    refine: Callable[[Node], OpInfo] | None = None
    rules: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raises `InputError` where one trait denies another."""
        for holds, what in (
            (not self.pointwise or self.within_channels, "is pointwise, so it is within_channels"),
            (not self.moves or (self.selects and self.homogeneous), "moves, so it selects and is homogeneous"),
            (not self.selects or self.monotone, "selects, so it is monotone"),
            (not self.fusable or (self.pointwise and self.monotone), "is fusable, so it is pointwise and monotone"),
            (self.clips is None or self.fusable, "clips, so it is fusable"),
            (self.range is None or all(map(math.isfinite, self.range)), "has a range, so both ends are finite"),
        ):
            if not holds:
                raise InputError(f"operators of the family {self.family!r}: one that {what}; say so in its OpInfo")
        if unknown := set(self.rules) - set(RULES):
            raise InputError(f"rules are for {', '.join(RULES)}, not for {', '.join(sorted(unknown))}")


UNKNOWN = OpInfo(None)

# ---- Calls whose arguments change what they mean --------------------------------------------------------------------


def _adaptive(node: Node) -> OpInfo:
    """Over whole images, adaptive average pooling has kernels and rules of its own."""
    whole = all(size == 1 for size in listed(argument(node, "output_size")))
    return replace(_AVERAGE, family="global_average_pool" if whole else "adaptive_average_pool")


def _choice(node: Node) -> OpInfo:
    """Between two values of the graph, for each sample: one number of `condition` for all that is behind the batch."""
    condition, *sides = node.args[:3]
    values = [each.meta.get("val") for each in (condition, *sides) if isinstance(each, Node) and each.op != "get_attr"]
    if len(values) != 3 or not all(isinstance(value, Tensor) and value.dim() > 1 for value in values):
        return UNKNOWN
    chosen, one, other = (tuple(value.shape) for value in values)  # type: ignore[union-attr]
    alike = [*map(str, one)] == [*map(str, other)] and len(chosen) == len(one) and str(chosen[0]) == str(one[0])
    return OpInfo("choose") if alike and all(size == 1 for size in chosen[1:]) else UNKNOWN


def _leaky(node: Node) -> OpInfo:
    """A negative slope turns around what is below zero."""
    return replace(_LEAK, monotone=argument(node, "negative_slope") >= 0)


def _pad(node: Node) -> OpInfo:
    """Only with zeros."""
    modes = "mode" in positions(node.target) and argument(node, "mode") != "constant"
    return UNKNOWN if modes or argument(node, "value") else OpInfo("pad", homogeneous=True, monotone=True)


def _sum(node: Node) -> OpInfo:
    """Plain sums and differences only."""
    kind = "sub" if node.target is aten.sub.Tensor else "add"
    return OpInfo(kind) if argument(node, "alpha") == 1 else UNKNOWN


def _mean_of_windows(node: Node) -> OpInfo:
    """With a divisor of its own it is no mean."""
    return _MEAN_OF_WINDOWS if argument(node, "divisor_override") is None else UNKNOWN


# ---- The table ------------------------------------------------------------------------------------------------------

_LAYER = OpInfo("linear", layer=True)
_POOL = OpInfo("max_pool", pools=True, within_channels=True, homogeneous=True, monotone=True)
_AVERAGE = replace(_POOL, family="average_pool", averages=True)
_MEAN_OF_WINDOWS = replace(_AVERAGE, dims=2)
_RESIZE = OpInfo("resize_linear", averages=True, within_channels=True, homogeneous=True, monotone=True)
_MOVE = OpInfo("reshape", moves=True, selects=True, homogeneous=True, monotone=True)
_SAME = replace(_MOVE, family="identity", within_channels=True)
_CURVE = OpInfo("gelu", pointwise=True, within_channels=True)
_SQUASH = replace(_CURVE, family="sigmoid", monotone=True, range=(0.0, 1.0))
_CLIP = replace(_CURVE, family="clamp", monotone=True, fusable=True)
_LEAK = replace(_CURVE, family="leaky_relu", homogeneous=True)


def _each(targets: Iterable[Any], info: OpInfo, family: str | None = None) -> dict[Any, OpInfo]:
    return dict.fromkeys(targets, replace(info, family=family or info.family))


_TABLE: dict[Any, OpInfo] = {
    aten.conv1d.default: replace(_LAYER, family="conv", dims=1),
    aten.conv2d.default: replace(_LAYER, family="conv", dims=2),
    aten.conv3d.default: replace(_LAYER, family="conv", dims=3),
    aten.conv_transpose1d.default: replace(_LAYER, family="conv_transpose", dims=1),
    aten.conv_transpose2d.input: replace(_LAYER, family="conv_transpose", dims=2),
    aten.conv_transpose3d.input: replace(_LAYER, family="conv_transpose", dims=3),
    aten.linear.default: _LAYER,
    **_each([aten.matmul.default, aten.bmm.default], OpInfo("matmul")),
    aten.batch_norm.default: OpInfo("batch_norm", within_channels=True, training_flag="training"),
    aten.instance_norm.default: OpInfo(None, training_flag="use_input_stats"),
    # activations
    aten.relu.default: replace(_CLIP, family="relu", homogeneous=True, clips=(0.0, INFINITY)),
    aten.relu6.default: replace(_CLIP, clips=(0.0, 6.0)),
    aten.hardtanh.default: replace(_CLIP, clips=("min_val", "max_val")),
    aten.clamp.default: replace(_CLIP, clips=("min", "max")),
    aten.clamp_min.default: replace(_CLIP, clips=("min", INFINITY)),
    aten.clamp.Tensor: replace(_CLIP, family="channel_clamp"),
    aten.leaky_relu.default: replace(_LEAK, refine=_leaky),
    aten.prelu.default: replace(_LEAK, family="prelu"),
    aten.sigmoid.default: _SQUASH,
    aten.hardsigmoid.default: replace(_SQUASH, family="hard_sigmoid"),
    aten.tanh.default: replace(_SQUASH, family="tanh", range=(-1.0, 1.0)),
    aten.hardswish.default: replace(_CURVE, family="hard_swish"),
    aten.silu.default: replace(_CURVE, family="silu"),
    aten.gelu.default: _CURVE,
    aten.softmax.int: OpInfo("softmax", range=(0.0, 1.0)),
    # arithmetic
    aten.add.Tensor: OpInfo("add", refine=_sum),
    aten.mul.Tensor: OpInfo("mul"),
    aten.sub.Tensor: OpInfo("sub", refine=_sum),
    aten.div.Tensor: OpInfo("div"),
    # joins, pools, other sizes
    aten.cat.default: OpInfo("concat"),
    aten.where.self: OpInfo(None, refine=_choice),
    aten.stack.default: OpInfo("stack"),
    **_each([aten.constant_pad_nd.default, aten.pad.default], OpInfo("pad", refine=_pad)),
    aten.max_pool1d.default: replace(_POOL, dims=1, selects=True),
    aten.max_pool2d.default: replace(_POOL, dims=2, selects=True),
    aten.max_pool3d.default: replace(_POOL, dims=3, selects=True),
    aten.avg_pool1d.default: replace(_AVERAGE, dims=1),
    aten.avg_pool2d.default: replace(_MEAN_OF_WINDOWS, refine=_mean_of_windows),
    **_each(
        [aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default],
        replace(_AVERAGE, refine=_adaptive), "adaptive_average_pool",
    ),
    aten.mean.dim: OpInfo("mean", averages=True, homogeneous=True, monotone=True),
    aten.upsample_bilinear2d.vec: _RESIZE,
    **_each(
        [aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default],
        replace(_MOVE, within_channels=True), "resize_nearest",
    ),
    # data movement
    **_each(
        [
            aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default,
            aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten._unsafe_view.default,
        ],
        _MOVE,
    ),
    **_each([aten.transpose.int, aten.permute.default, aten.t.default, aten.numpy_T.default], _MOVE, "transpose"),
    **_each([aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.index_select.default], _MOVE, "slice"),
    **_each(
        [aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default], _MOVE, "split"
    ),
    **_each(
        [aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default], _MOVE, "shuffle"
    ),
    aten.expand.default: replace(_MOVE, family="expand"),
    aten.flip.default: replace(_MOVE, family="flip"),
    aten.roll.default: replace(_MOVE, family="roll"),
    operator.getitem: replace(_MOVE, family="getitem"),
    # nothing at all
    **_each(
        [
            aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default,
            aten.lift_fresh_copy.default,
        ],
        _SAME,
    ),
    **_each(
        [aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default],
        replace(_SAME, training_flag="train"),
    ),
    aten.feature_alpha_dropout.default: OpInfo(None, training_flag="train"),
}  # fmt: skip


def register(target: Any, info: OpInfo) -> None:
    """Say what an operator means, for this process.

    Args:
        target: an ATen operator or one of your own, as it stands in captured graphs (`torch.ops.mine.swoosh.default`).

    Raises:
        InputError: the operator has other traits already, or has no argument that `info` names.
    """
    if _TABLE.get(target, info) != info:
        raise InputError(f"{target} is registered already, as {_TABLE[target]}")
    ends = info.clips or ()
    for name in (info.training_flag, *(end for end in ends if isinstance(end, str))):
        if name is not None and name not in positions(target):
            raise InputError(f"{target} has no argument {name!r}; it has {', '.join(positions(target)) or 'none'}")
    _TABLE[target] = info
    if info.family is not None:
        add_family(info.family)


def registered(condition: Callable[[OpInfo], Any]) -> dict[Any, OpInfo]:
    """The operators whose traits meet a condition."""
    return {target: info for target, info in _TABLE.items() if condition(info)}


# ---- Questions about a call -----------------------------------------------------------------------------------------


def info(node: Any) -> OpInfo:
    """The traits of a call; `UNKNOWN`, which has none, for anything else."""
    if not isinstance(node, Node) or node.op != "call_function":
        return UNKNOWN
    found = _TABLE.get(node.target, UNKNOWN)
    return found if found.refine is None else found.refine(node)


def family(node: Any) -> str | None:
    """The family of a call, None for anything unknown."""
    return info(node).family


def is_elementwise(node: Node) -> bool:
    """Whether every element of the result is made of the elements of the operands at its index."""
    return info(node).pointwise or torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_random(node: Node) -> bool:
    """Whether a call draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def function_of_one(node: Any) -> Callable[[Tensor], Tensor] | None:
    """The function of a pointwise call that reads one tensor and is the same for all its elements; None for other calls."""
    if not info(node).pointwise or node.all_input_nodes != [node.args[0]]:
        return None
    return lambda x: node.target(x, *node.args[1:], **node.kwargs)


def clip_of(node: Any) -> tuple[float, float] | None:
    """The interval that a call clips all channels to; None for other calls."""
    clips = info(node).clips
    if clips is None:
        return None
    low, high = (argument(node, end) if isinstance(end, str) else end for end in clips)
    return -INFINITY if low is None else float(low), INFINITY if high is None else float(high)


def share_range(node: Any) -> tuple[float, float] | None:
    """The range of shares (sigmoid, softmax), which fill it, so that a grid needs no data. (Those of tanh are measured.)"""
    found = info(node).range
    return found if found == (0.0, 1.0) else None
