"""In how many bits the weights of an integer layer are stored, and whether its data are signs: read from the codes themselves.

    1 bit     weights -1 and 1, or -a and a                data -1 and 1 as well: XNOR and popcount; else expanded block by block
    2 bits    zero and one number on each side of it, for each channel
    8 bits    everything else; and what a kernel for fewer does not pay for, with the reason

A layer's answer does not depend on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.tvm import codes
from graphopt.backends.tvm.machine import Machine, Processor
from graphopt.backends.tvm.schedules import Conv, bits, few
from graphopt.ir.ops import family
from graphopt.lowering.integers.arithmetic import Table, quantize
from graphopt.lowering.integers.fusion import Kernel
from graphopt.lowering.to_signs import TO_SIGNS


def stored_bits(weight: Tensor) -> int:
    """Of codes [out, ...]: the fewest that hold them."""
    rows = weight.flatten(1)
    above, below = (rows.amax(1, True).clamp(min=0), rows.amin(1, True).clamp(max=0))
    if not bool(((rows == 0) | (rows == above) | (rows == below)).all()):
        return 8
    return 1 if bool((rows.abs() == 1).all()) else 2


def with_few_bits(spec: Conv, weight: Tensor, read: Node, processor: Processor) -> tuple[Conv, str | None]:
    """The spec with the bits and signs of its kernel, and what to say of it; None for a layer that has 8 bits anyway.

    Args:
        weight: codes. read: the call that gives the layer's data.
    """
    fewest = stored_bits(weight)
    if fewest == 8:
        return spec, None
    packed = replace(spec, bits=fewest)
    if not isinstance(processor, Machine):
        return spec, f"8 bits: GPUs have no kernel for weights of {fewest}"
    if fewest == 1 and gives_signs(read) and bits.applies(signs := replace(packed, signs=True)):
        return signs, "1 bit, XNOR and popcount"
    if not few.applies(packed):
        return spec, f"8 bits: depthwise layers have no kernel for weights of {fewest}"
    if few.pixels(spec) < few.WORTH:
        found = few.pixels(spec)
        return (
            spec,
            f"8 bits: each weight is used {found} times, and expanding it from {fewest} pays from {few.WORTH} on",
        )
    return packed, f"{fewest} bit{'s' * (fewest > 1)}, expanded block by block"


def gives_signs(node: Node) -> bool:
    """Whether a call gives the codes one below and one above its zero point, and no others."""
    target: Any = node.target
    if target is quantize:
        source: Any = node.args[0]
        return isinstance(source, Node) and source.target is TO_SIGNS and bool(source.args[1] == 0)
    if isinstance(target, Kernel) and isinstance(target.function, Table) and len(target.grids) == 1:
        entries, zero = target.function.entries.int(), target.grid.zero_point if target.grid else 0
        return set(torch.unique(entries).tolist()) <= {zero - 1, zero + 1}
    moved = codes.moves_codes(node) and family(node) != "pad"
    return moved and isinstance(node.args[0], Node) and gives_signs(node.args[0])
