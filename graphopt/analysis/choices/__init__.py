"""Networks whose parts can be had in several ways (`graphopt.ir.choices`).

costs.py     what they cost: of a choice that is made, and expected under weights
extract.py   an ordinary smaller graph out of one
"""

from graphopt.analysis.choices.costs import Costs, LiveTerm
from graphopt.analysis.choices.extract import extract

__all__ = ["Costs", "LiveTerm", "extract"]
