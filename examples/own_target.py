"""A target of one's own: an accelerator with 8-bit codes on power-of-two scales, which computes convolutions and ReLU in integer.

    python examples/own_target.py

A target is data: number formats, families of operators with integer kernels, and the runtime that its files are for.
"""

from __future__ import annotations

import torch
from torch import nn

import graphopt
from graphopt.formats import Format
from graphopt.targets import find

CODES = Format(8, power_of_two=True)
ACCELERATOR = find("vitis").replace(
    name="my-accelerator",
    weights=CODES,
    activations=CODES,
    integer=frozenset({"conv", "linear", "relu", "add"}),
    channel_multiple=8,
)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3), nn.Sigmoid()
    ).eval()
    images = torch.rand(16, 3, 24, 24)
    result = graphopt.optimize(model, images[:1], target=ACCELERATOR, calibration=images, measure=False)
    result.report.print()  # the sigmoid stays float, and the report says why
    print("answers of the device, by simulation:", graphopt.simulate(result.graph, ACCELERATOR)(images[:1]).shape)


if __name__ == "__main__":
    main()
