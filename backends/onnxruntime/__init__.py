"""ONNX Runtime: lower a graph to a checked ONNX model with integer weights, run it, and read back what it really executes.

artifact = lower(graph, target)
artifact(images)
simulate(graph, target) # the artifact's answers in torch, integer by integer
audit(artifact)         # share of the work in integer, operators that stayed float
audit_file(path, target) # the same of anyone's file, with reasons and fixes
artifact.on("htp")      # on Qualcomm's HTP or its emulator, for the target hexagon; "tensorrt" or "cuda" for nvidia
"""

from graphopt.artifacts.audit import Audit
from graphopt.backends.onnxruntime.artifact import OnnxRuntimeArtifact, deploy, load, lower
from graphopt.backends.onnxruntime.audit import audit, audit_file, fix
from graphopt.backends.onnxruntime.devices import connect
from graphopt.backends.onnxruntime.simulate import simulate
from graphopt.lowering.integers.simulation import Mismatch, Simulation

__all__ = [
    "Audit",
    "Mismatch",
    "OnnxRuntimeArtifact",
    "Simulation",
    "audit",
    "audit_file",
    "connect",
    "deploy",
    "fix",
    "load",
    "lower",
    "simulate",
]
