"""LSTM, GRU and plain recurrent layers: one operator of ONNX for each layer.

torch stacks the gates of an LSTM as input, forget, cell, output, ONNX as input, output, forget, cell; those of a GRU as reset,
update, new, ONNX as update, reset, new.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, rank, reshaped
from graphopt.backends.onnxruntime.emit.writer import Writer, as_numpy
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError

GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def _recurrent(kind: str, **attributes: Any) -> Rule:
    def rule(w: Writer, a: Arguments) -> tuple[Value, ...]:
        if "input" not in a or rank(a["input"]) != 3:
            raise NoRule
        a.ignore("dropout")
        if a["train"] and a["dropout"]:
            raise NoRule
        directions = 2 if a["bidirectional"] else 1
        starts = list(a["hx"]) if kind == "LSTM" else [a["hx"]]
        hidden = shape(starts[0])[-1]
        if kind == "LSTM" and shape(starts[1])[-1] != hidden:
            raise InputError(
                f"{w.graph.site(a.node)}: {a.target} with projections (proj_size={hidden}) cannot be written as ONNX; leave "
                "out proj_size"
            )
        layers = _weights(w, kind, a["params"], a["has_biases"], a["num_layers"] * directions)
        options = {
            "hidden_size": hidden,
            "direction": "bidirectional" if a["bidirectional"] else "forward",
            **attributes,
        }
        if "activations" in attributes:
            options["activations"] = attributes["activations"] * directions
        x = w.read(a["input"])
        x = w.op("Transpose", x, perm=[1, 0, 2]) if a["batch_first"] else x
        time, batch = (shape(a["input"])[d] for d in ((1, 0) if a["batch_first"] else (0, 1)))
        finals: list[list[Value]] = [[] for _ in starts]
        for layer in range(a["num_layers"]):
            own = layers[layer * directions : (layer + 1) * directions]
            first = [_part(w, start, layer * directions, directions, a["num_layers"] * directions) for start in starts]
            stored = [
                _stored(w, f"{w.name}_{what}{layer}", own, n) for n, what in enumerate("WRB") if own[0][n] is not None
            ]
            stored += [None] * (3 - len(stored))
            results = w.ops(kind, 1 + len(starts), x, *stored, None, *first, **options)
            x = w.op("Transpose", results[0], perm=[0, 2, 1, 3])  # [time, batch, direction, hidden]
            x = reshaped(w, x, (time, batch, directions * hidden))
            for kept, final in zip(finals, results[1:], strict=True):
                kept.append(final)
        x = w.op("Transpose", x, perm=[1, 0, 2]) if a["batch_first"] else x
        return x, *(f[0] if len(f) == 1 else w.op("Concat", *f, axis=0) for f in finals)

    return rule


def _part(w: Writer, start: Node, begin: int, count: int, of: int) -> Value:
    """The states of one layer."""
    value = w.read(start)
    if count == of:
        return value
    return w.op("Slice", value, w.integers([begin]), w.integers([begin + count]), w.integers([0]))


def _weights(
    w: Writer, kind: str, params: list[Node], biases: bool, count: int
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Of each layer and direction: input weights, recurrent weights, both biases; gates in the order of ONNX."""
    each = 4 if biases else 2
    known = [w.constant_value(p) for p in params]
    if len(params) != each * count or any(k is None for k in known):
        raise NoRule  # projected, or computed
    found = []
    for n in range(count):
        own = [torch.cat([t.chunk(len(GATES[kind]))[g] for g in GATES[kind]]) for t in known[n * each : (n + 1) * each]]  # type: ignore[union-attr]
        found.append((own[0], own[1], torch.cat(own[2:]) if biases else None))
    return found


def _stored(w: Writer, name: str, layers: list[tuple[Any, ...]], which: int) -> Value:
    return w.store(w.fresh(name), as_numpy(torch.stack([layer[which] for layer in layers])))


RECURRENT: dict[Any, Rule] = {
    aten.lstm.input: _recurrent("LSTM"),
    aten.gru.input: _recurrent("GRU", linear_before_reset=1),
    aten.rnn_tanh.input: _recurrent("RNN", activations=["Tanh"]),
    aten.rnn_relu.input: _recurrent("RNN", activations=["Relu"]),
}
