"""Facts about a graph and its values.

channels/               which channels share a scale, which are removed together
branches.py             residual branches
gates.py                choices of samples between two values
halting.py              stages that stop where a sample or a position has had enough
choices/                what networks with choices cost, and one of them
intervals.py            bounds of values
distributions.py        means and variances by batch norms
distribution_rules.py   what each operator makes of them
normals.py              functions of normally distributed values
im2col.py               what a layer multiplies its weight with, as rows
moments.py              moments of rows, group by group
output_error.py         the error at the outputs of a changed graph
"""
