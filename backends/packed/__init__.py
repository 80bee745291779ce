"""Formats that no operator of a runtime has: codes in a documented file, run by simulation.

artifact = lower(graph, target)
artifact(images)                   what the simulated graph answers, bit for bit
artifact.folder / "weights.packed" the codes for the device; see `graphopt.artifacts.packing`
"""

from graphopt.backends.packed.artifact import PackedArtifact, audit, deploy, load, lower, simulate

__all__ = ["PackedArtifact", "audit", "deploy", "load", "lower", "simulate"]
