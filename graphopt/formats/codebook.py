"""Codebooks: a table of a few numbers, fitted to a tensor by k-means; a code is a place in the table.

    x^ = table[code]        code: the nearest entry, the lower one where two are equally near

Lloyd's iterations minimise the squared error, weighted where an importance is given (by the diagonal of a Hessian, say):

    table[k] = sum of w x over the members of k / sum of w

from a start with density p^(1/3) (Panter and Dite 1951), the best for many levels, or one of those of Deep Compression:

    linear     evenly spaced from the least to the greatest value: large weights, which are few, keep entries of their own
    density    evenly spaced along the distribution function (its inverse, at the middles of equal shares)
    random     values drawn from the data

One entry is held at zero, so that zeros stay zeros. A table is fitted whatever range the data have: `minmax` and `mse` mean the
same.

Parameters: `table`, float32, ascending, [2^bits] or [channels, 2^bits].
Paper:  Han, Mao and Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
        Huffman Coding", section 3, the gradient of the table included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.formats.protocol import Quantizer, check_bits, from_rows, rows
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    import torch
    from torch import Tensor

    from graphopt.formats.protocol import Method, Parameters
else:
    torch = lazy("torch")

Start = Literal["cube root", "linear", "density", "random"]
ITERATIONS = 60
KNOTS = 4096  # of the distribution that the start is drawn from


@dataclass(frozen=True)
class Codebook:
    """Attributes:
    bits: of a code, 2 to 8.
    per_channel: every output channel has a table of its own.
    """

    block: ClassVar[int] = 0

    bits: int = 4
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, 8)

    @property
    def code_range(self) -> tuple[int, int]:
        return 0, (1 << self.bits) - 1

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE_TABLE

        return FAKE_QUANTIZE_TABLE

    def __str__(self) -> str:
        return f"codebook{self.bits} {'per channel' if self.per_channel else 'per tensor'}"

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        axis = axis if self.per_channel else -1
        flat = rows(x.detach().double(), axis)
        weight = rows(importance.double(), axis) if importance is not None else torch.ones_like(flat)
        table = k_means(flat, weight, 2**self.bits)
        return Quantizer(self, (table if axis >= 0 else table[0],), axis)

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        return Quantizer(self, (k_means(seen[None], counts[None], 2**self.bits)[0],))

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        flat = rows(x, axis).double()
        table = parameters[0].reshape(len(flat), -1)
        return from_rows(nearest(flat, table), x, axis).int()

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        flat = rows(codes, axis).long()
        return from_rows(parameters[0].reshape(len(flat), -1).gather(1, flat), codes, axis)

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        return float(parameters[0].min()), float(parameters[0].max())

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (*parameters, axis)


def from_arguments(table: Tensor, axis: int) -> Quantizer:
    return Quantizer(Codebook(table.shape[-1].bit_length() - 1, per_channel=axis >= 0), (table,), axis)


def nearest(flat: Tensor, table: Tensor) -> Tensor:
    wide = table.double()
    middles = (wide[:, 1:] + wide[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), flat.contiguous())


def k_means(flat: Tensor, weight: Tensor, count: int, start: Start = "cube root", seed: int = 0) -> Tensor:
    """A table of `count` entries for every row of flat, [rows, n], of least weighted squared error; one entry is zero.

    Args:
        start: see the head of this file; `cube root` is p^(1/3).
        seed: of `random`.
    """
    table = _start(flat, weight, count) if start == "cube root" else _simple_start(flat, count, start, seed)
    table = table.scatter(1, table.abs().argmin(1, keepdim=True), 0.0)
    for _ in range(ITERATIONS):
        codes = nearest(flat, table)
        mass, total, error = torch.zeros(3, *table.shape, dtype=torch.float64)
        mass.scatter_add_(1, codes, weight)
        total.scatter_add_(1, codes, weight * flat)
        error.scatter_add_(1, codes, weight * (flat - table.gather(1, codes)).square())
        found = torch.where(mass > 0, total / mass.clamp(min=1e-300), table)
        found = found.scatter(1, table.abs().argmin(1, keepdim=True), 0.0)
        found = _employ(found, mass, error)
        if torch.equal(found, table):
            break
        table = found
    return table.float()


def _employ(table: Tensor, mass: Tensor, error: Tensor) -> Tensor:
    """Let entries without members share the work of those with the largest errors, one each."""
    idle = (mass == 0) & (table != 0)
    rank = idle.cumsum(1) - 1  # the how-manieth idle entry of its row
    worst = error.sort(dim=1, descending=True, stable=True).indices.gather(1, rank.clamp(min=0))
    spread = (error / mass.clamp(min=1e-300)).sqrt()
    helped = table.gather(1, worst) + spread.gather(1, worst)
    useful = idle & (error.gather(1, worst) > 0)
    return torch.where(useful, helped, table).sort(1).values


def _simple_start(flat: Tensor, count: int, start: Start, seed: int) -> Tensor:
    """Entries of Deep Compression, section 3.1, ascending."""
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if start == "linear":
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        return low + (high - low) * torch.linspace(0, 1, count, dtype=torch.float64)
    if start == "density":
        return flat.sort(1).values[:, (steps * flat.shape[1]).long()]
    places = torch.randint(flat.shape[1], (count,), generator=torch.Generator().manual_seed(seed))
    return flat[:, places].sort(1).values


def _start(flat: Tensor, weight: Tensor, count: int) -> Tensor:
    """Entries with equal shares of the integral of p^(1/3) between them: a gap g between neighbours that holds the mass m has
    the density m / g, and the share (m / g)^(1/3) g."""
    x, order = flat.sort(1)
    mass = weight.gather(1, order).cumsum(1)
    knots = torch.unique(torch.linspace(0, x.shape[1] - 1, min(x.shape[1], KNOTS)).round().long())
    x, mass = x[:, knots], mass[:, knots]
    share = mass.diff(dim=1, prepend=torch.zeros_like(mass[:, :1])).pow(1 / 3)
    share = share * x.diff(dim=1, prepend=x[:, :1]).pow(2 / 3)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
    below = share.cumsum(1)
    wanted = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).expand(len(x), count).contiguous()
    place = torch.searchsorted(below, wanted).clamp(1, max(1, x.shape[1] - 1)).clamp(max=x.shape[1] - 1)
    left = (place - 1).clamp(min=0)
    inside = ((wanted - below.gather(1, left)) / share.gather(1, place).clamp(min=1e-300)).clamp(0, 1)
    return x.gather(1, left) + inside * (x.gather(1, place) - x.gather(1, left))
