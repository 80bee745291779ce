"""From a model to a measured artifact, in one call.

optimize.py   `optimize`, `load`, `simulate`
recipes.py    the passes of a target
ladder.py     ways to quantize, in the order of what they cost
latency.py    the time of graphs, measured and remembered
"""
