"""From a model to a measured artifact, in one call.

optimize.py   `optimize`, `load`, `simulate`
options.py    the options of `optimize`, in groups
stages.py     its stages, in order
capturing.py  the graph that they begin with
recipes.py    the passes of a target
ladder.py     ways to quantize, in the order of what they cost
latency.py    the time of graphs, measured and remembered
"""
