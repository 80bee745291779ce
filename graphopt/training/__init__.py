"""Training captured graphs by gradients.

trainer.py      `train`: the loop, what it keeps, and where it goes on
options.py      how
batches.py      the forms of training data
losses.py       what is minimized
judges.py       what a state is kept for
parameters.py   what is learned, with which rates, and its average
forward.py      a batch through the graph, as the processor computes it fastest
devices.py      on another device than the processor
rounding.py     its quantizers, likewise
processes.py    several of them, under torchrun
compression.py  what learns beside the weights
pruning.py      weights and channels that become weak while the network learns
structures.py   blocks and channels whose scales become zero meanwhile
lottery.py      weights that are masked, the others trained again from early values
noise.py        blocks of weights as a quantization would make them
sharing.py      values that weights share
hashing.py      binary codes that keep neighbours
quantization/   quantization-aware training
choices/        networks that share their weights, trained at once
exits.py        answers that a network gives on the way
gates.py        parts that run, or do not, as each sample needs
halting.py      stages that stop early: what computing costs
experts.py      experts that are chosen by noisy scores
distillation/   learning from another network
checkpoint.py   the file of an interrupted training
report.py       what a training did
"""

from graphopt.training.compression import Compression, Run
from graphopt.training.distillation import Distill, Response
from graphopt.training.hashing import LearnCodes
from graphopt.training.judges import Unseen
from graphopt.training.noise import QuantNoise
from graphopt.training.options import Options
from graphopt.training.quantization import DampenOscillations, FreezeOscillations, QuantizationAware
from graphopt.training.report import TrainingReport
from graphopt.training.sharing import SharedValues
from graphopt.training.trainer import train

__all__ = [
    "Compression",
    "DampenOscillations",
    "Distill",
    "FreezeOscillations",
    "LearnCodes",
    "Options",
    "QuantNoise",
    "QuantizationAware",
    "Response",
    "Run",
    "SharedValues",
    "TrainingReport",
    "Unseen",
    "train",
]
