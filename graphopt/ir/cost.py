"""Numbers about a graph and its outputs: work, size, fidelity, speed. Everything a report says comes from here.

Counts are per sample: a free batch size counts as one, other free sizes as those of the example. A graph captured for a fixed
batch is counted at that batch.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import is_quantizer, is_uniform, quantizer_of
from graphopt.ir.shapes import counted
from graphopt.ir.structure import tensors
from graphopt.targets import cpu_features

# ---- Work and size --------------------------------------------------------------------------------------------------


def macs(graph: Graph) -> int:
    """Multiply-accumulate operations of one forward pass; see `layer_macs` for what counts."""
    return sum(layer_macs(graph).values())


def layer_macs(graph: Graph) -> dict[Node, int]:
    """Multiply-accumulates of every convolution, linear layer, matrix product, attention and recurrent layer."""
    counts = ((node, sum(math.prod(length(*dim) for dim in p) for p in products(node))) for node in graph.calls())
    return {node: count for node, count in counts if count}


def elements(graph: Graph) -> int:
    """Elements of everything that one forward pass computes: what layers that multiply little take their time by."""
    return sum(math.prod(_sizes(node)) for node in graph.calls())


def parameters(graph: Graph) -> int:
    """Elements of the trainable weights, and of weights stored as integer codes; a shared weight counts once."""
    return sum(_weights(graph).values())


def weight_bytes(graph: Graph) -> int:
    """Bytes of every constant the graph reads (weights, statistics, scales); a shared one counts once.

    What the graph itself still rounds counts with the bits of its codes.
    """
    tensors: dict[int, float] = {}
    for node in graph.nodes:
        if graph.is_constant(node):
            tensor = graph.parameter(node)
            bits = [_code_bits(graph, reader) for reader in node.users]
            size = tensor.element_size() if not all(bits) else max(bits, default=0) / 8
            tensors[id(tensor)] = max(tensor.numel() * size, tensors.get(id(tensor), 0))
    return math.ceil(sum(tensors.values()))


def _code_bits(graph: Graph, reader: Node) -> int:
    """Of the codes that a quantizer makes of a constant; 0 where a reader is none."""
    if not is_quantizer(reader):
        return 0
    if is_uniform(reader):  # biases, and weights in blocks, too
        low, high = reader.args[3:5]
        return (int(high) - int(low)).bit_length()  # type: ignore[arg-type]
    return quantizer_of(graph, reader).format.bits


def _weights(graph: Graph) -> dict[int, int]:
    """The elements of each."""
    found = {}
    for node in graph.nodes:
        if graph.is_constant(node):
            tensor = graph.parameter(node)
            readers = [u for u in node.users if _name(u).startswith("dequantize_") and u.args[0] is node]
            if isinstance(tensor, nn.Parameter) or readers:  # codes in blocks are packed: what they decode to counts
                found[id(tensor)] = max(math.prod(_sizes(reader)) for reader in readers) if readers else tensor.numel()
    return found


def products(node: Node) -> list[list[tuple[Node, int]]]:
    """The multiply-accumulates of a call as a sum of products of lengths: of each factor the value and its dimension."""
    name = _name(node)
    if name in ("conv1d", "conv2d", "conv3d"):
        return [_dims(node) + _dims(node.args[1])[1:]]
    if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return [_dims(node.args[0]) + _dims(node.args[1])[1:]]
    if name in ("linear", "matmul", "mm", "bmm", "mv", "dot"):
        return [_dims(node) + _dims(node.args[0])[-1:]]
    if name in ("addmm", "baddbmm"):
        return [_dims(node) + _dims(node.args[1])[-1:]]
    if name == "scaled_dot_product_attention":
        query, key, value = (_dims(a) for a in node.args[:3])
        return [[*query[:-1], key[-2], last] for last in (query[-1], value[-1])]
    if name == "einsum":
        return _einsum(node)
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        lists = [a for a in node.args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Node)]
        matrices = [_dims(w) for w in lists[-1] if len(_sizes(w)) == 2]  # states come first, weights last
        return [_dims(node.args[0])[:-1] + matrix for matrix in matrices]
    return []


def _dims(node: Any) -> list[tuple[Node, int]]:
    return [(node, dim) for dim in range(len(_sizes(node)))]


def _einsum(node: Node) -> list[list[tuple[Node, int]]]:
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, (list, tuple))
    longest: dict[str, tuple[Node, int]] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        head, dots, tail = term.partition("...")
        dims = _dims(operand)
        between = len(dims) - len(head) - len(tail) if dots else 0
        letters = [*head, *(f"...{between - i}" for i in range(between)), *tail]
        for letter, dim in zip(letters, dims, strict=True):
            if letter not in longest or length(*dim) > length(*longest[letter]):
                longest[letter] = dim
    return [list(longest.values())] if len(operands) > 1 else []


def length(node: Node, dim: int) -> int:
    """The length of a dimension; a free batch counts as one sample, another free size as the example's."""
    return _sizes(node)[dim]


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).split("::")[-1] if schema is not None else ""


def _sizes(node: Any) -> list[int]:
    """The shape of a value, with a free batch counted as one and other free sizes as the example has them."""
    value = node.meta["val"]
    return [counted(s) for s in value.shape] if isinstance(value, Tensor) else []


# ---- Fidelity -------------------------------------------------------------------------------------------------------


def same_form(reference: Any, value: Any) -> bool:
    """Whether two answers have outputs of the same shapes and types, so that they can be compared. They have not where a pass has
    put something else in the place of an output, such as codes in that of features."""
    ours, theirs = tensors(reference), tensors(value)
    return len(ours) == len(theirs) and all(
        r.shape == v.shape and r.is_floating_point() == v.is_floating_point() for r, v in zip(ours, theirs, strict=True)
    )


def sqnr(reference: Any, value: Any) -> float:
    """Signal-to-quantization-noise ratio in decibels, of the worst floating-point output where there are several.

        10 log10(sum(reference^2) / sum((reference - value)^2))

    Infinite where nothing differs, NaN where `value` is not finite.
    """
    pairs = zip(tensors(reference), tensors(value), strict=True)
    inexact = ((r, v) for r, v in pairs if r.is_floating_point() or r.is_complex())
    return min((_sqnr(r, v) for r, v in inexact), default=math.inf, key=_nan_first)


def _sqnr(reference: Tensor, value: Tensor) -> float:
    signal, value = (_parts(t).cpu().double() for t in (reference, value))
    noise = float((signal - value).square().sum())
    return _decibel(float(signal.square().sum()), noise)


def _parts(value: Tensor) -> Tensor:
    """Real and imaginary parts of complex numbers."""
    return torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()


class Match:
    """How close one tensor after another comes to its reference, as one ratio over all of them; only sums are kept.

    sqnr_db = 10 log10(sum r^2 / sum (r - v)^2)         as `sqnr`
    cosine  = sum r v / sqrt(sum r^2 sum v^2)
    """

    def __init__(self) -> None:
        self.signal = self.power = self.noise = 0.0

    def update(self, reference: Tensor, value: Tensor) -> None:
        self.signal += _square(reference)
        self.power += _square(value)
        self.noise += _square(reference - value)

    @property
    def sqnr_db(self) -> float:
        return _decibel(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """1 where nothing differs, 0 where one of the two is zero throughout; NaN where a value is not finite."""
        if self.noise == 0:
            return 1.0
        lengths = math.sqrt(self.signal * self.power)
        return (self.signal + self.power - self.noise) / 2 / lengths if lengths else 0.0


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2


def _decibel(power: float, noise: float) -> float:
    if not math.isfinite(noise) or not math.isfinite(power):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def _nan_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def agreement(reference: Any, value: Any) -> float:
    """The share of predictions, 0 to 1, that are the same in both, by the first output that holds any.

    A prediction is the largest class: classes lie along dimension 1 of images ([N, C], [N, C, H, W]) and along the last one of
    sequences ([N, T, C]). Flags and integers are predictions themselves. NaN where no output holds predictions.
    """
    for ours, theirs in zip(tensors(reference), tensors(value), strict=True):
        predicted, answered = _predictions(ours), _predictions(theirs)
        if predicted is not None and answered is not None:
            return float(torch.eq(predicted, answered).double().mean())
    return math.nan


def _predictions(output: Tensor) -> Tensor | None:
    if not output.numel() or output.is_complex():
        return None
    if not output.is_floating_point():
        return output if output.dim() else None
    return output.argmax(class_dim(output)) if output.dim() > 1 else None


def class_dim(output: Tensor) -> int:
    """The dimension that classes lie along: 1 of images ([N, C], [N, C, H, W], [N, C, D, H, W]), the last one of sequences."""
    return 1 if output.dim() in (2, 4, 5) else output.dim() - 1


# ---- Speed ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds of each call, by name; the n-th values of all names were taken one after the other."""

    ms: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.ms[name])

    def speedup(self, before: str, after: str) -> float:
        """How many times faster `after` is: the median over rounds of the ratio within a round."""
        return statistics.median(b / a for b, a in zip(self.ms[before], self.ms[after], strict=True))


def timings(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 20,
    warmup: int = 5,
    budget_seconds: float = 20.0,
    clocked: bool = False,
    in_a_row: int = 3,
) -> Timings:
    """Time several functions in one process, in turn (A A A B B B A A A ...), so that drift of the machine hits all alike.

    A network on a device runs again and again by itself. The first call of a turn finds the caches full of what others
    computed, so it is not counted where there are more; a turn counts as the median of its others.

    Args:
        calls: what to time, by name.
        repeats: rounds; fewer (but at least 5) once `budget_seconds` are used up.
        warmup: calls of each function before the first round.
        clocked: each function returns the milliseconds it took, by a clock of its own.
        in_a_row: calls of a turn; 1 times each function as it runs once after the others.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    ms: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_seconds
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of one call would be charged to it
    try:
        for done in range(repeats):
            if done >= 5 and time.perf_counter() > end:
                break
            for name, call in calls.items():
                turn = [_timed(call, clocked) for _ in range(in_a_row)]
                ms[name].append(statistics.median(turn[1:] or turn))
    finally:
        if collecting:
            gc.enable()
    return Timings(ms)


def _timed(call: Callable[[], Any], clocked: bool) -> float:
    start = time.perf_counter_ns()
    returned = call()
    return float(returned) if clocked else (time.perf_counter_ns() - start) / 1e6


def latency(calls: Mapping[str, Callable[[], Any]], repeats: int = 30, warmup: int = 5) -> dict[str, float]:
    """Median milliseconds of each function; see `timings`."""
    taken = timings(calls, repeats, warmup)
    return {name: taken.median(name) for name in calls}


# What decides the speed of integer kernels.
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


def host_cpu() -> str:
    """This machine in words: processor, cores in use, and the instruction sets that matter for int8."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((s.partition(":")[2].strip() for s in lines if s.startswith(("model name", "Model"))), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = model or platform.processor() or platform.machine() or "unknown processor"
    features = [f for f in _FEATURES if f in cpu_features()]
    return ", ".join([f"{name} ({platform.machine()})", f"{cores} core{'s' * (cores != 1)}", *features])
