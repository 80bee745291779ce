"""Small replacements of embedding tables.

replace_embedding.py   the pass
replacement.py         what a replacement is, and is made of
low_rank.py            factors: of the whole table, or of blocks by frequency
compositional.py       rows made of few shared ones: quotient and remainder, hashes
product.py             rows made of pieces from codebooks
characters.py          rows computed from a token's characters
"""

from graphopt.passes.embeddings.replace_embedding import ReplaceEmbedding

__all__ = ["ReplaceEmbedding"]
