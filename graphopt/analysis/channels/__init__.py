"""Channels: which ones share a scale (`scales`), and which ones can only be removed together (`groups`)."""

from graphopt.analysis.channels.scales import ZERO, Channels, Flow, Labels, Slot

__all__ = ["ZERO", "Channels", "Flow", "Labels", "Slot"]
