"""Data: for calibration, for passes, and synthesized where there is none.

calibration.py   `Calibration`: data in any form, as batches of a graph's inputs
batches.py       batches of nested inputs
rebatching.py    of the size that a graph takes
loaders.py       folders of images, NumPy files, iterables
preprocessing.py   from an image to a model's input, as data
preprocessing_sources.py   the same from timm, Transformers and torchvision
synthesize.py    inputs that match batch-norm statistics
"""

from graphopt.data.calibration import Calibration
from graphopt.data.preprocessing import Preprocessing

__all__ = ["Calibration", "Preprocessing"]
