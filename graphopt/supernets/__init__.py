"""Searching among the networks that a trained supernet holds.

problem.py   a graph with choices as a problem that solvers take
scores.py    what a sub-network scores with the weights that it shares
found.py     what a search found, and its front
search.py    `search`
proxies.py   scores of networks that are not trained
rotations.py turned images as targets, where there are no labels
distilled.py scores of students that learn from a given teacher
refit.py     sub-networks fitted to the largest one
predictor.py scores predicted from those of other networks
"""

from graphopt.supernets.found import Found, Tried
from graphopt.supernets.problem import problem_of
from graphopt.supernets.search import search

__all__ = ["Found", "Tried", "problem_of", "search"]
