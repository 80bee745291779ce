"""Exits: answers that a network gives on the way.

add_exits.py   `AddExits`: heads at some values of a classifier, whose answers the graph returns beside its own
sites.py       where exits may be: values that all of the answer goes through, and the work in front of them
heads.py       what makes an answer of a value
inline.py      a captured module as calls of another graph
"""

from graphopt.passes.exits.add_exits import AddExits

__all__ = ["AddExits"]
