"""A complete example: train a small network on handwritten digits, optimize it for this machine, see what it bought.

main.py      `graphopt demo`
network.py   the network
train.py     its training
"""
