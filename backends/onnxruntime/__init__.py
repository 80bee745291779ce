"""ONNX Runtime: lower a graph to a checked ONNX model with integer weights, run it, and read back what it really executes.

artifact = lower(graph, target)
artifact(images)
simulate(graph, target) # the artifact's answers in torch, integer by integer
audit(artifact)         # share of the work in integer, operators that stayed float
"""

from graphopt.audit import Audit
from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact, load, lower
from graphopt.backends.onnxruntime.audit import audit
from graphopt.backends.onnxruntime.simulate import simulate
from graphopt.deploy import deploy
from graphopt.integers.simulation import Mismatch, Simulation

__all__ = ["Audit", "Mismatch", "OnnxRuntimeArtifact", "Simulation", "audit", "deploy", "load", "lower", "simulate"]
