"""The errors graphopt raises, by whose mistake it is.

The caller's mistakes are `ValueError`s with a subclass where code may want to react to one; a pass that breaks its own
contract raises `PassError`, which is ours to mend.
"""


class GraphoptError(Exception):
    """Base of every error graphopt raises on purpose; the command line prints these in one line."""


class CaptureError(GraphoptError, ValueError):
    """The model cannot be captured into a graph: where in its source, why, and what to change."""


class InputError(GraphoptError, ValueError):
    """An argument, a tensor or a file handed in by the caller does not fit: what, where, and what to do."""


class ArtifactError(GraphoptError, ValueError):
    """A saved artifact is damaged, was altered, or comes from a newer graphopt."""


class NonFiniteError(GraphoptError, ValueError):
    """NaN or infinity turned up in a weight or an activation; the message names the first node that produced one."""


class PassError(GraphoptError, RuntimeError):
    """A pass broke its contract (invalid graph, changed outputs although exact); the message says how to reproduce."""
