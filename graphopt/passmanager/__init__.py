"""Running passes: verified, dumped, bisected.

runner.py   `run`, `first_bad`
step.py     `Step`: what one pass changed and cost
plain_options.py   the options of a pass as plain data
"""

from graphopt.passmanager.runner import first_bad, run

__all__ = ["first_bad", "run"]
