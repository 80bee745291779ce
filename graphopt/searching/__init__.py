"""Search: spend a budget over choices.

problem.py    choices, what their options cost and damage, and the limits
exact.py      the least damage within the limits, by integer programming
greedy.py     step by step, then improved by exchanges: where there are too many combinations for the other
sampled.py    evolution, and random draws as the control; both with any score in place of the damage
reinforce.py  probabilities of options that learn from what drawn networks score
netadapt.py   step by step by a measured score
ddpg.py       an agent that decides one choice after the other
samplers.py   those of optuna
solvers.py    the solvers by name
"""

from graphopt.searching.problem import Assignment, Choice, Option, Problem, Term
from graphopt.searching.solvers import SOLVERS, Solver, solve

__all__ = ["SOLVERS", "Assignment", "Choice", "Option", "Problem", "Solver", "Term", "solve"]
