"""Running graphs over data.

observers.py   values watched while a graph runs
streaming.py   two graphs side by side, layer by layer, over all batches
resumable.py   a run that stops at a node and goes on
reference.py   the float graph that a simulated graph came from
spill.py       values that do not fit in memory, on disk
"""
