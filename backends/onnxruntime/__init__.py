"""ONNX Runtime: lower a graph to a checked ONNX model with integer weights, run it, and read back what it really executes.

artifact = lower(graph, target)
artifact(images)
simulate(graph, target) # the artifact's answers in torch, integer by integer
audit(artifact)         # share of the work in integer, operators that stayed float
artifact.on("htp")      # on Qualcomm's HTP or its emulator, for the target hexagon
"""

from graphopt.audit import Audit
from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact, load, lower
from graphopt.backends.onnxruntime.audit import audit
from graphopt.backends.onnxruntime.qnn import connect
from graphopt.backends.onnxruntime.simulate import simulate
from graphopt.integers.simulation import Mismatch, Simulation

__all__ = ["Audit", "Mismatch", "OnnxRuntimeArtifact", "Simulation", "audit", "connect", "load", "lower", "simulate"]
