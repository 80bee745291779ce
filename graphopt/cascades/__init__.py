"""Networks that compute as much as a sample needs: stages put together, thresholds chosen on data, what that gives measured.

cascade.py   `Cascade`: stages, fitted to a drop of accuracy or to a budget
answers.py   what every stage answers on data
split.py     a graph with exits as stages
simulation.py  what devices will answer, and which stage, bit for bit
timing.py    what each way through the stages takes, beside the plain network
measure.py   accuracy, rates, time and calibration on data
report.py    what was measured, in words and tables
report_page.py   the same as a page of HTML, with the curve
"""

from graphopt.cascades.cascade import Cascade
from graphopt.cascades.report import CascadeReport

__all__ = ["Cascade", "CascadeReport"]
