"""Rebuilding layers on data.

least_squares.py   layers fitted to outputs by streamed moments
rounding.py        integer codes that minimize a quadratic error
losses.py          losses for sensitivity
"""
