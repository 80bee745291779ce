"""Training graphs with choices (`graphopt.ir.choices`): many networks that share their weights, trained at once.

sampled.py      sub-networks drawn in every step: single paths, the sandwich rule, progressive shrinking
relaxed.py      weights of choices that are learned: DARTS, SNAS and FBNet, ProxylessNAS, DMCP
expressions.py  the expressions that those are
adam.py         what steps of theirs are made by
"""

from graphopt.training.choices.relaxed import Binary, Gumbel, Markov, Relaxed, Softmax
from graphopt.training.choices.sampled import Progressive, Sampled, Sandwich, SinglePath

__all__ = ["Binary", "Gumbel", "Markov", "Progressive", "Relaxed", "Sampled", "Sandwich", "SinglePath", "Softmax"]
