"""From a simulated graph to integers.

qdq.py         the graph in the form that runtimes take: quantize and dequantize
names.py       names of values, which backends and simulation share
static_batch.py  one batch size in place of a free one
bias_grids.py  biases lie on the grid of the sums they are added to
signs.py       types of codes that no kernel takes together
to_signs.py    values rounded to signs, as a function that runtimes have
integers/      integer kernels, their fusion, and their simulation to the last bit
"""
