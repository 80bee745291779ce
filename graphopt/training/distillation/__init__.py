"""Learning from other networks.

distill.py      `Distill` and `Response`: a loss between a student and its teacher
methods.py      the table: a method's name and its terms
terms.py        a term: places x transform x distance, and what it learns for a pair of networks
places.py       where: by name, by stage, by the same name in both
attention.py    where, in transformers
transforms.py   what of the values
distances.py    how far apart
learned.py      modules that learn along: adapters, discriminators, paraphrasers
teachers.py     who is learned from: one network, several, one after another
recorded.py     answers on disk
schemes.py      who teaches whom: chains, mutual learning, stage by stage
exits.py        a network that is its own teacher
"""

from graphopt.training.distillation.distill import Distill, Response
from graphopt.training.distillation.exits import Exits
from graphopt.training.distillation.methods import METHODS, Method
from graphopt.training.distillation.recorded import Cached, Recorded, record
from graphopt.training.distillation.schemes import Mutual, chain, stagewise
from graphopt.training.distillation.teachers import Ensemble, Network, Route, Teacher
from graphopt.training.distillation.terms import Term

__all__ = [
    "METHODS", "Cached", "Distill", "Ensemble", "Exits", "Method", "Mutual", "Network", "Recorded", "Response", "Route",
    "Teacher", "Term", "chain", "record", "stagewise",
]  # fmt: skip
