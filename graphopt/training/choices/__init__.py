"""Training graphs with choices (`graphopt.ir.choices`): many networks that share their weights, trained at once.

sampled.py      sub-networks drawn in every step: single paths, the sandwich rule, progressive shrinking
relaxed.py      weights of choices that are learned by gradient
learned.py      the methods that do so: DARTS, SNAS and FBNet, ProxylessNAS, DMCP
unrolled.py     the gradient of DARTS' second order
expressions.py  the expressions that those are
generated.py    weights that a small network makes for the widths at hand: MetaPruning
adam.py         what steps of theirs are made by
"""

from graphopt.training.choices.generated import GeneratedWeights
from graphopt.training.choices.learned import Binary, Gumbel, Markov, Softmax
from graphopt.training.choices.relaxed import Relaxed
from graphopt.training.choices.sampled import Progressive, Sampled, Sandwich, SinglePath

__all__ = [
    "Binary",
    "GeneratedWeights",
    "Gumbel",
    "Markov",
    "Progressive",
    "Relaxed",
    "Sampled",
    "Sandwich",
    "SinglePath",
    "Softmax",
]
