"""Channels: one trace of what goes together, and two kinds of groups from it.

trace.py           labels pushed through a graph; labels.py what holds between them
rules.py           what each operator means for labels; contractions.py, movement.py, norms.py, windows.py by kind
groups.py          what can only be removed together; removal.py removing it, cost.py what that saves
vanishing.py       where channels of zeros count like channels that are gone
shuffles.py        channel shuffles as gathers, so that their channels can be removed one by one
scale_trace.py     the trace where channels are divided by factors, not removed; scale_rules.py what each operator means for it
scale_groups.py    what has to share a factor; rescale.py dividing it
"""

from graphopt.analysis.channels.scale_groups import ScaleGroups
from graphopt.analysis.channels.scale_trace import Site

__all__ = ["ScaleGroups", "Site"]
