"""Packed codes as a backend."""

from __future__ import annotations

from graphopt.artifacts.backend import Backend
from graphopt.backends.packed.artifact import audit, deploy, load, lower, simulate

BACKEND = Backend(name="packed", lower=lower, load=load, audit=audit, simulate=simulate, deploy=deploy)
