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
data_free.py    without data: a generator makes the inputs
rationales.py   answers and the reasons for them, of language models
exits.py        a network that is its own teacher
"""

from graphopt.training.distillation.data_free import DataFree, Generator, data_free
from graphopt.training.distillation.distill import Distill, Response
from graphopt.training.distillation.exits import Exits
from graphopt.training.distillation.methods import METHODS, Method
from graphopt.training.distillation.rationales import Rationales, with_rationales
from graphopt.training.distillation.recorded import Cached, Recorded, record
from graphopt.training.distillation.schemes import Mutual, chain, stagewise
from graphopt.training.distillation.teachers import Ensemble, Network, Route, Teacher
from graphopt.training.distillation.terms import Term

__all__ = [
    "METHODS", "Cached", "DataFree", "Distill", "Ensemble", "Exits", "Generator", "Method", "Mutual", "Network", "Rationales",
    "Recorded", "Response", "Route", "Teacher", "Term", "chain", "data_free", "record", "stagewise", "with_rationales",
]  # fmt: skip
