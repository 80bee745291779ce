"""A budget for the whole network, spent over its channels, blocks, factors and formats together.

amounts.py      what a budget says: latency, ms, macs, bytes, energy
widths.py       choices: channels of every group
depths.py       choices: residual blocks, there or not
ranks.py        choices: layers whole, or as chains of smaller ones
formats.py      choices: bits of a layer's weights, or float
costs.py        terms: multiply-accumulates, bytes, milliseconds of the parts
energy.py       terms: energy by the target's table
timed_parts.py  times of parts between the widths at which they are timed
correction.py   milliseconds corrected by the times of whole networks
clock.py        time beside the float original
spending.py     all choices of a network, their costs, and the passes that make them
planner.py      the best choices within a budget, checked on the runtime
spend.py        a budget of `optimize`
"""
