"""How much of the result a kernel holds in registers: pixels x vectors of channels.

With a tile of p pixels and v vectors a step of a sum does p v multiply-accumulates and reads p elements and v vectors of weights:

    cycles = max(p v, latency, v * vector bytes / bandwidth) + (p + v) / 2

for machines that multiply once and load twice a cycle. The bandwidth is that of the cache which holds the weights of one block of
channels, read once for each tile. p v sums, v weights, one element of the data and what a step needs besides must fit the
registers: a sum that does not is loaded and stored at every step. Of all tiles that fit, the one whose repetition over the whole
result takes least is chosen; a tile that would reach beyond the edge is moved back over
its neighbour, so every tile is full. Where data is loaded by the vector, each pixel needs a register for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from graphopt.backends.tvm.machine import Machine

LATENCY = 8  # independent sums that keep a pipelined multiplier busy
L1_BANDWIDTH, L2_BANDWIDTH, FAR_BANDWIDTH = 64, 32, 8  # bytes a cycle, typical of the last ten years


@dataclass(frozen=True)
class Tile:
    """rows x columns pixels by `vectors` vectors of channels."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> list[tuple[int, int]]:
        return list(product(range(self.rows), range(self.columns)))

    def count(self, rows: int, columns: int, vectors: int) -> int:
        """Tiles that cover a result."""
        return -(-rows // self.rows) * -(-columns // self.columns) * -(-vectors // self.vectors)


def for_sums(rows: int, columns: int, vectors: int, weights: int, machine: Machine, scratch: int = 0) -> list[Tile]:
    """For a result of rows x columns pixels and this many vectors of channels, each with this many bytes of weights.

    All tiles that fit the registers, the best first. `scratch`: registers that a step needs for what is neither sum nor operand.
    """

    def cycles(tile: Tile) -> float:
        p, v = tile.rows * tile.columns, tile.vectors
        read = v * machine.vector_bytes / _bandwidth(v * weights, machine)
        return (max(p * v, LATENCY, read) + (p + v) / 2) * tile.count(rows, columns, vectors)

    def fits(p: int, v: int) -> bool:
        return p * v + v + (p if machine.by_element else 1) + scratch <= machine.vector_registers

    return _ranked(cycles, rows, columns, vectors, fits)


def for_windows(
    rows: int,
    columns: int,
    vectors: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    machine: Machine,
    group: int = 1,
) -> list[Tile]:
    """The same for kernels that treat each channel by itself: neighbouring windows share what they load.

    Each pixel of a tile's windows is a stream of its own through memory, along the channels. Where reading costs little, tiles of
    one column and few rows are fastest, which have few streams; else what is read stays in registers until it is used up.

    Args:
        group: taps of a row that are one operand.
    """

    def cycles(tile: Tile) -> tuple[bool, float]:
        height, width = ((n - 1) * s + k for n, s, k in zip((tile.rows, tile.columns), stride, kernel, strict=True))
        operations = tile.rows * tile.columns * kernel[0] * kernel[1]
        step = max(operations, LATENCY) + (height * width + kernel[0] * kernel[1]) / 2
        held = tile.rows * (tile.columns + -(-width // group))  # sums, and the operands of one row of taps
        if machine.memory_operands:
            slow = tile.columns > 1 or tile.rows > LATENCY or held > machine.vector_registers - 4
        else:
            slow = held >= machine.vector_registers
        return slow, step * tile.vectors * tile.count(rows, columns, vectors)

    return _ranked(cycles, rows, columns, vectors, lambda p, v: v == 1 and p <= machine.vector_registers // 2)


def _bandwidth(working_set: int, machine: Machine) -> int:
    if working_set <= machine.l1_bytes // 2:
        return L1_BANDWIDTH
    return L2_BANDWIDTH if working_set <= machine.l2_bytes * 3 // 4 else FAR_BANDWIDTH


def _ranked(
    cycles: Callable[[Tile], Any], rows: int, columns: int, vectors: int, fits: Callable[[int, int], bool]
) -> list[Tile]:
    def fitting() -> Iterator[Tile]:
        for v in range(1, min(vectors, 8) + 1):
            for h in range(1, rows + 1):
                if not fits(h, v):
                    break
                for w in range(1, columns + 1):
                    if not fits(h * w, v):
                        break
                    yield Tile(h, w, v)

    return sorted(fitting(), key=lambda tile: (cycles(tile), tile.rows, tile.vectors))
