"""What passes know about the nodes of a graph beyond its operators: each kind of knowledge is declared once, as a `Fact`.

    graph.set_fact(layer, MOMENTS, Moments(mean, deviation))
    moments = graph.fact(layer, MOMENTS)                        Moments | None, which mypy knows

A fact lies in `node.meta` under its name, is copied with the graph, and is written to the graph's file (`stored_facts.py`). It
is forgotten where `set_constant` or `put_constant` changes what it depends on, unless the pass `keeps` it as still true.

    value               the constant itself, for a fact about a `get_attr` node
    float constants     a constant argument of the call, as the float network has it
    rounded weight      the weight of a layer as it is rounded: its float value, or the scale of its quantizer
    scale               the scale of the quantizer itself

Tensors that are trained in place change nothing here: no edit of the graph tells of it.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Trigger = Literal["value", "float constants", "rounded weight", "scale"]

# What torch itself keeps in a node's meta.
TORCH_META = frozenset({
    "val", "tensor_meta", "from_node", "seq_nr", "torch_fn", "stack_trace", "nn_module_stack", "source_fn_stack", "custom",
    "desc", "example_value", "unbacked_bindings", "recompute", "ac_graph_id", "is_wrapped", "original_aten", "partitioner_tag",
    "eager_input_vals",
})  # fmt: skip


@dataclass(frozen=True)
class Fact(Generic[T_co]):
    """One kind of knowledge about a node.

    Attributes:
        name: its key in `node.meta` and in files.
        type: of its values: bool, int, float, str, Tensor, or a NamedTuple of these where it is saved.
        saved: whether files hold it.
        invalidated_by: the changes after which it no longer holds.
    """

    name: str
    type: builtins.type[T_co]
    saved: bool = True
    invalidated_by: frozenset[Trigger] = frozenset()


FACTS: dict[str, Fact[Any]] = {}


def declare(name: str, type: builtins.type[T], *by: Trigger, saved: bool = True) -> Fact[T]:
    """A new kind of fact. Whoever loads a file that holds some has to declare it first.

    Raises:
        ValueError: the name is no identifier, taken, or one of torch's own.
    """
    if name in FACTS or name in TORCH_META or not name.isidentifier():
        raise ValueError(
            f"a fact cannot be called {name!r}: {'it is taken' if name.isidentifier() else 'no identifier'}"
        )
    fact = Fact(name, type, saved, frozenset(by))
    FACTS[name] = fact
    return fact


class Moments(NamedTuple):
    """Mean and deviation of each channel of a value on the training data, float32 [channels]."""

    mean: Tensor
    deviation: Tensor


# A call that had training behaviour in the model's eval mode and keeps it.
ALWAYS_TRAINING = declare("always_training", bool)
# A call that has eval behaviour while the rest of the graph trains: a batch norm whose statistics are frozen.
ALWAYS_EVAL = declare("always_eval", bool)
# Why a layer stays float.
LEFT = declare("left", str)
# Of a value, from the batch norm behind it that was folded. It describes the float network.
MOMENTS = declare("moments", Moments, "float constants")
# Of a constant: what it was before a pass changed it to make up for rounding.
FLOAT_REFERENCE = declare("float_reference", Tensor, "value")
# Of a constant: there was a float reference, and the file left it out.
REFERENCE_LEFT_OUT = declare("reference_left_out", bool, "value")
# Of a layer: the mean error of its rounded weight is out of its bias.
BIAS_CORRECTED = declare("bias_corrected", bool, "rounded weight")
# Of a layer: the codes of its weight were chosen on data.
ROUNDING_LEARNED = declare("rounding_learned", bool, "rounded weight")
# Of a quantizer: its scale is where the network answers best.
REFINED = declare("refined", bool, "scale")
# Of a constant: part of what stands in the place of an embedding table.
EMBEDDING_PART = declare("embedding_part", bool)
# Of a call: part of what stands in the place of softmax attention.
ATTENTION_PART = declare("attention_part", bool)
# Of a call on constants: it is how a weight is stored, and is not computed beforehand.
STORED_AS = declare("stored_as", bool)
# Of what is left of a sample's (or a position's) halting probability behind a block: the name of the stage.
HALTING = declare("halting", str)
# Of the scores of experts: the name of the mixture.
ROUTER = declare("router", str)
# Of what says which experts are taken: the name of the mixture.
TAKEN = declare("taken", str)
