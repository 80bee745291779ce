"""Attention whose cost grows with the number of tokens, not with its square, in the place of softmax attention.

replace_attention.py   the pass
find.py                softmax attention in a graph, as one call or spelled out
masks.py               what masks allow: keys, and whether later tokens
method.py              what a method is, and what it works with
features.py            linear attention: feature maps of queries and keys
efficient.py           softmax over the features of queries, over the tokens of keys
linformer.py           keys and values projected over tokens
blocks.py              blocks of neighbours, and some tokens that all see
sinkhorn.py            blocks sorted to those that need them
star.py                neighbours and a relay
fitted.py              what a method learns, fitted to what the original gave
"""

from graphopt.passes.attention.blocks import Blocks
from graphopt.passes.attention.efficient import Efficient
from graphopt.passes.attention.features import Linear
from graphopt.passes.attention.linformer import Linformer
from graphopt.passes.attention.replace_attention import ReplaceAttention
from graphopt.passes.attention.sinkhorn import Sinkhorn
from graphopt.passes.attention.star import Star

__all__ = ["Blocks", "Efficient", "Linear", "Linformer", "ReplaceAttention", "Sinkhorn", "Star"]
