"""TVM: lower a graph to kernels compiled ahead of time for a CPU, true integers included."""
