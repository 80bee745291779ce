"""A budget for the whole network, spent over its channels, blocks, factors and formats together.

amounts.py      what a budget says: latency, ms, macs, bytes
widths.py       choices: channels of every group
depths.py       choices: residual blocks, there or not
costs.py        terms: multiply-accumulates, bytes, milliseconds of the parts
spend.py        the choices made, checked on the runtime, and the passes that make them
"""
