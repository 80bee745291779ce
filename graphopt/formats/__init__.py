"""Number formats: which numbers values are rounded to, and how.

uniform.py          whole numbers times a scale, 2-16 bits      Format(8), Format(16), Format(8, power_of_two=True)
logarithmic.py      powers of a root of two, with a sign        LogFormat(8)
floating.py         float16, bfloat16 and smaller               FLOAT16, FLOAT16_WITHOUT_SUBNORMALS, BFLOAT16
block_floating.py   one exponent to a block of whole numbers    BlockFloat(8, block=16)
codebook.py         a table found by k-means                    Codebook(4)
signs.py            a sign times a scale, one bit or two        Binary(), Ternary()
blocks.py           packed codes with a scale to each block of a row, for weights alone

protocol.py         what they have in common: `NumberFormat`, and `Quantizer`, a format fitted to a tensor
operators.py        the operators that round to them, registered with torch
straight_through.py rounding to uniform grids, and its gradients
pieces.py           rounding to one grid without going through memory for each step
names.py            formats as text and as JSON, and back

Formats are plain data: torch is imported when one is fitted to a tensor, or an operator is named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt.formats.block_floating import BlockFloat
from graphopt.formats.codebook import Codebook
from graphopt.formats.floating import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_FORMATS,
    FLOAT16_WITHOUT_SUBNORMALS,
    FloatFormat,
)
from graphopt.formats.logarithmic import LogFormat
from graphopt.formats.names import from_json, parse, to_json
from graphopt.formats.protocol import Method, NumberFormat, Quantizer, blocks_of
from graphopt.formats.signs import Binary, Ternary
from graphopt.formats.uniform import (
    SMALLEST_CHANNEL_SCALE,
    SMALLEST_SCALE,
    Format,
    dequantize,
    in_blocks,
    least_error_range,
    quantize,
    reach,
    scale_and_zero_point,
    with_bits,
)

if TYPE_CHECKING:
    from graphopt.formats.operators import (
        FAKE_QUANTIZE,
        FAKE_QUANTIZE_BLOCK_FLOAT,
        FAKE_QUANTIZE_FLOAT,
        FAKE_QUANTIZE_LOG,
        FAKE_QUANTIZE_SIGNS,
        FAKE_QUANTIZE_TABLE,
        fake_quantize,
    )

__all__ = [
    "BFLOAT16",
    "FAKE_QUANTIZE",
    "FAKE_QUANTIZE_BLOCK_FLOAT",
    "FAKE_QUANTIZE_FLOAT",
    "FAKE_QUANTIZE_LOG",
    "FAKE_QUANTIZE_SIGNS",
    "FAKE_QUANTIZE_TABLE",
    "FLOAT16",
    "FLOAT16_FORMATS",
    "FLOAT16_WITHOUT_SUBNORMALS",
    "SMALLEST_CHANNEL_SCALE",
    "SMALLEST_SCALE",
    "Binary",
    "BlockFloat",
    "Codebook",
    "FloatFormat",
    "Format",
    "LogFormat",
    "Method",
    "NumberFormat",
    "Quantizer",
    "Ternary",
    "blocks_of",
    "dequantize",
    "fake_quantize",
    "from_json",
    "in_blocks",
    "least_error_range",
    "parse",
    "quantize",
    "reach",
    "scale_and_zero_point",
    "to_json",
    "with_bits",
]


def __getattr__(name: str) -> Any:
    """Operators are registered with torch when one of them is first named."""
    if name in __all__:
        return getattr(importlib.import_module("graphopt.formats.operators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
