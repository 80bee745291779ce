"""Running passes: verified, dumped, bisected.

runner.py   `run`, `first_bad`
"""
