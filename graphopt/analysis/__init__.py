"""Facts about a graph and its values.

channels/               which channels share a scale, which are removed together
branches.py             residual branches
blocks.py               residual blocks that a sample can go past
gates.py                choices of samples between two values
halting.py              stages that stop where a sample or a position has had enough
experts.py              mixtures of experts, and how often each is taken
choices/                what networks with choices cost, and one of them
intervals.py            bounds of values
distributions.py        means and variances by batch norms
distribution_rules.py   what each operator makes of them
normals.py              functions of normally distributed values
im2col.py               what a layer multiplies its weight with, as rows
moments.py              moments of rows, group by group
output_error.py         the error at the outputs of a changed graph
"""
