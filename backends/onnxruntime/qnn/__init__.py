"""Qualcomm's HTP through onnxruntime-qnn: artifacts of the target hexagon on the hardware, or on the package's emulator of it.

there = artifact.on("htp:v75")                # wholly on HTP as of Hexagon v75, or an error that names what is not
there(images)
artifact.compile("contexts", ["v73", "v75"])  # what a device loads without compiling
"""

from graphopt.backends.onnxruntime.qnn.artifact import HtpArtifact
from graphopt.backends.onnxruntime.qnn.contexts import compile_contexts
from graphopt.backends.onnxruntime.qnn.provider import ARCHITECTURES, Htp, connect

__all__ = ["ARCHITECTURES", "Htp", "HtpArtifact", "compile_contexts", "connect"]
