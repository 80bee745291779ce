"""Channels: which ones share a scale (`scales`), and which ones can only be removed together (`groups`)."""
