"""Rewrites of a quantized ONNX file that let a runtime compute in integer what it computes in float. One file a rewrite.

edit.py       what they share
readers.py    all readers of a value read its codes
means.py      ReduceMean -> GlobalAveragePool
gates.py      HardSigmoid, HardSwish, Swish, Tanh -> operators with integer kernels
sums.py       MatMul + constant -> Gemm
splits.py     quantizers between a layer and its activation
weights.py    float weights of layers that read codes
ranges.py     quantizers from ranges measured on calibration data
moves.py      quantizers on grids that follow from others
ends.py       grids that begin at zero behind activations
biases.py     int32 on the grid of the sums
signs.py      signed codes <-> unsigned codes
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.biases import store_biases
from graphopt.backends.onnxruntime.audit.fixes.edit import sweep
from graphopt.backends.onnxruntime.audit.fixes.ends import start_at_zero
from graphopt.backends.onnxruntime.audit.fixes.gates import write_gates
from graphopt.backends.onnxruntime.audit.fixes.means import pool_means
from graphopt.backends.onnxruntime.audit.fixes.moves import quantize_around_moves
from graphopt.backends.onnxruntime.audit.fixes.readers import share_codes
from graphopt.backends.onnxruntime.audit.fixes.signs import store_signs
from graphopt.backends.onnxruntime.audit.fixes.splits import join_activations
from graphopt.backends.onnxruntime.audit.fixes.sums import fold_sums
from graphopt.backends.onnxruntime.audit.fixes.weights import quantize_weights
from graphopt.ir.passes import Change
from graphopt.targets import Target

Fix = Callable[[ir.Model, Target], list[Change]]
FIXES: dict[str, Fix] = {
    "readers": share_codes,
    "means": pool_means,
    "gates": write_gates,
    "sums": fold_sums,
    "splits": join_activations,
    "weights": quantize_weights,
    "moves": quantize_around_moves,
    "ends": start_at_zero,
    "biases": store_biases,
    "signs": store_signs,
}
# What operators there are and where quantizers stand; then how codes are stored. "ranges" needs data.
FORMS = ("readers", "means", "gates", "sums", "splits", "weights", "moves", "ends")
STORAGE = ("biases", "signs")

__all__ = ["FIXES", "FORMS", "STORAGE", "Fix", "sweep"]
