"""A layer fitted by least squares, from which units of its input are removed one after another.

With the columns I of a unit, R = H^-1_I,: and C = W_I, a removal leaves

    S = (H^-1_II)^-1 R              [k, d]      k: columns of the unit
    H^-1 - R^T S                    [d, d]
    W - C S                         [out, d]

H^-1 and W are large, and what they cost is to go through memory. So R, S and C of many units are kept and subtracted together,
as one product; and where a part of the units has gone, the matrices lose their columns. What is looked at after every removal is
kept up to date for each unit: a block of H^-1 and one of W^T W, [k, k].

Paper: Hassibi & Stork 1993, "Optimal Brain Surgeon", for the formulas; many updates as one product are those of blocked
factorizations (Golub & Van Loan, "Matrix Computations", section 3.2.11).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graphopt.analysis.channels.labels import Array

RIDGE = 1e-2  # of the mean second moment
WAITING = 256  # rows of R that are kept before they are subtracted
KEPT = 0.8  # matrices are copied without the columns that are gone where no more than this share of them is left


class Elimination:
    """One reader: its weight and the inverse second moments of its input, without the units removed so far.

    Args:
        weight: [out, d].
        moments: of its inputs, centred: [d, d], float64.
        units: the unit of each of the d columns, -1 for none.
        count: the number of units.
    """

    def __init__(self, weight: Tensor, moments: Tensor, units: Array, count: int) -> None:
        self.weight = weight.double().clone()
        self.power = float(((self.weight @ moments) * self.weight).sum().clamp(min=1e-30))
        ridge = RIDGE * moments.diagonal().mean().clamp(min=1e-12)
        metric = moments + ridge * torch.eye(len(moments), dtype=moments.dtype)
        factor, failed = torch.linalg.cholesky_ex(metric)
        self.inverse = torch.linalg.inv(metric) if failed else torch.cholesky_inverse(factor)
        self.size, self.left = (
            weight.shape[1],
            torch.arange(weight.shape[1]),
        )  # columns at first, and those of the matrices
        self.there = torch.ones(self.size, dtype=torch.bool)  # of these: no unit that is gone has them
        owner = torch.from_numpy(units)
        columns = [torch.nonzero(owner == unit).flatten() for unit in range(count)]
        sizes = torch.tensor([len(c) for c in columns])
        self.index = pad_sequence(columns, batch_first=True)  # [units, k]
        self.real = torch.arange(self.index.shape[1]) < sizes[:, None]  # [units, k]: what is no padding
        self.blocks, self.grams = self._blocks()
        self._begin()

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """H^-1_II and W_I^T W_I of every unit, [units, k, k]; padding is that of the identity, and of zero."""
        both = self.real[:, :, None] & self.real[:, None, :]
        padding = torch.diag_embed((~self.real).double())
        blocks = self.inverse[self.index[:, :, None], self.index[:, None, :]] * both + padding
        own = self.weight[:, self.index].permute(1, 2, 0)  # [units, k, out]
        return blocks, (own @ own.mT) * both

    def _begin(self) -> None:
        """Nothing waits."""
        self.gone: list[Tensor] = []  # columns of the matrices
        rows, width = WAITING + self.index.shape[1], len(self.left)
        self.rows, self.shares = self.inverse.new_empty(rows, width), self.inverse.new_empty(rows, width)
        self.columns = self.weight.new_empty(len(self.weight), rows)
        self.waiting = 0

    def costs(self, units: Tensor) -> Tensor:
        """The error that removing each of these units adds, tr(W_I (H^-1_II)^-1 W_I^T) by the output's power: [units]."""
        solved = torch.linalg.solve(self.blocks[units], self.grams[units])
        costs: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1) / self.power
        return costs

    def remove(self, unit: int) -> None:
        """Fit the layer again without a unit."""
        index = self.index[unit][self.real[unit]]
        if not len(index):
            return
        r, s, c = self.rows[: self.waiting], self.shares[: self.waiting], self.columns[:, : self.waiting]
        rows = self.inverse[index] - r[:, index].T @ s
        column = self.weight[:, index] - c @ s[:, index]
        products = column.T @ self.weight - (column.T @ c) @ s  # C^T W
        share = torch.linalg.solve(rows[:, index], rows)
        own = self._apart(share)
        self.blocks -= self._apart(rows).mT @ own
        cross = self._apart(products).mT @ own
        self.grams += own.mT @ (column.T @ column) @ own - cross - cross.mT
        end = self.waiting + len(index)
        self.rows[self.waiting : end], self.shares[self.waiting : end] = rows, share
        self.columns[:, self.waiting : end] = column
        self.waiting = end
        self.real[unit] = False
        self.gone.append(index)
        if self.waiting >= WAITING:
            self._subtract()

    def fitted(self) -> Tensor:
        """The weight as it is now, zero where a unit is gone: [out, d]."""
        self._subtract()
        weight = self.weight.new_zeros(len(self.weight), self.size)
        weight[:, self.left[self.there]] = self.weight[:, self.there]
        return weight

    def _apart(self, rows: Tensor) -> Tensor:
        """[k, d] -> [units, k, k]: the columns of each unit."""
        return (rows[:, self.index] * self.real).transpose(0, 1)

    def _subtract(self) -> None:
        r, s, c = self.rows[: self.waiting], self.shares[: self.waiting], self.columns[:, : self.waiting]
        self.inverse.addmm_(r.T, s, alpha=-1)
        self.weight.addmm_(c, s, alpha=-1)
        if self.gone:
            self.there[torch.cat(self.gone)] = False
        if int(self.there.sum()) <= KEPT * len(self.there):
            self._drop()
        self._begin()

    def _drop(self) -> None:
        """Copy the matrices without the columns that are gone, and number the columns of units anew."""
        there = torch.nonzero(self.there).flatten()
        number = torch.zeros(len(self.there), dtype=torch.long)
        number[there] = torch.arange(len(there))
        self.index = number[self.index] * self.real
        self.inverse, self.weight = self.inverse[there][:, there], self.weight[:, there]
        self.left, self.there = self.left[there], torch.ones(len(there), dtype=torch.bool)
