"""From a simulated graph to integers.

qdq.py       the graph in the form that runtimes take: quantize and dequantize
integers/    integer kernels, their fusion, and their simulation to the last bit
"""
