"""Data: for calibration, for passes, and synthesized where there is none.

calibration.py   `Calibration`: data in any form, as batches of a graph's inputs
batches.py       batches of nested inputs
loaders.py       folders of images, NumPy files, iterables
synthesize.py    inputs that match batch-norm statistics
"""

from graphopt.data.calibration import Calibration

__all__ = ["Calibration"]
