"""Quantization-aware training.

aware.py        `QuantizationAware`: the quantizers of a graph train with it
methods.py      how, as a table of published methods
grids.py        which grids there are to train
learned.py      one of them for as long as it trains
scales.py       learned scales
transforms.py   what methods do to weights in front of their quantizers
signs.py        quantizers that round to signs, for as long as they train
sign_surrogate.py   rounding to signs, and its gradients
surrogate.py    rounding with other gradients than straight through
norms.py        batch norms, put back for the training and folded again
observed.py     ranges that follow what batches hold, until they are frozen
oscillation.py  weights that flip from step to step: dampened, or frozen
parameters.py   what belongs to quantizers and is learned
"""

from graphopt.training.quantization.aware import QuantizationAware
from graphopt.training.quantization.methods import METHODS
from graphopt.training.quantization.oscillation import DampenOscillations, FreezeOscillations

__all__ = ["METHODS", "DampenOscillations", "FreezeOscillations", "QuantizationAware"]
