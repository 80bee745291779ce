"""Kernels for GPUs: every thread computes one element or a tile of registers, blocks of threads share what they load.

threads.py     one result a thread: elementwise, pools, depthwise convolution
gemm.py        convolutions and linear layers as implicit matrix products through shared memory
leftovers.py   TVM's own operators, by its rules
spelling.py    arithmetic that must be exact, in the words of CUDA and OpenCL
"""
