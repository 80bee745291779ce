"""Exits: answers that a network gives on the way.

add_exits.py   `AddExits`: heads at some values of a classifier, whose answers the graph returns beside its own
sites.py       where exits may be: values that all of the answer goes through, and the work in front of them
heads.py       what makes an answer of a value
"""

from graphopt.passes.exits.add_exits import AddExits

__all__ = ["AddExits"]
