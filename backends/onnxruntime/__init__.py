"""ONNX Runtime: lower a graph to a checked ONNX model with integer weights, run it, and read back what it really executes.

artifact = lower(graph, target)
artifact(images)
audit(artifact)         # share of the work in integer, operators that stayed float
"""

from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact, load, lower
from graphopt.backends.onnxruntime.audit import Audit, audit

__all__ = ["Audit", "OnnxRuntimeArtifact", "audit", "load", "lower"]
