"""Binary codes in place of features, for search by Hamming distance.

binary_codes.py   the pass
projections.py    which bits: the table of methods, on features alone
"""

from graphopt.passes.hashing.binary_codes import BinaryCodes

__all__ = ["BinaryCodes"]
