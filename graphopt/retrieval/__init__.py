"""Search among features and among binary codes, and what the second loses against the first. No graph.

selection.py   the nearest few of many distances
exact.py       all distances between features, in float
hamming.py     codes by Hamming distance, in NumPy
faiss.py       the same through the faiss library, where that is installed
compare.py     recall, bytes and time of codes beside an exact search
"""

from graphopt.retrieval.compare import Retrieval, compare
from graphopt.retrieval.exact import FloatIndex
from graphopt.retrieval.faiss import FaissIndex
from graphopt.retrieval.hamming import HammingIndex

__all__ = ["FaissIndex", "FloatIndex", "HammingIndex", "Retrieval", "compare"]
