"""Integer kernels of CPU runtimes: which quantizers around which operators make one, and what it computes, to the last bit.

Backends lower the graph of kernels, or let their runtime find the same ones; the simulation interprets it.
"""
