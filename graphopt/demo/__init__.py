"""A complete example: train a small network on handwritten digits, optimize it for this machine, see what it bought."""
