"""Running graphs over data.

executor.py    a graph run call by call: whole, in part, from the middle, changed on the way
observers.py   values watched while a graph runs
subgraph.py    part of a graph as a graph of its own
streaming.py   two graphs side by side, layer by layer, over all batches
norm_statistics.py   what batch norms normalize by, measured on data
reference.py   the float graph that a simulated graph came from
spill.py       values that do not fit in memory, on disk
"""
