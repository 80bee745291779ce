"""Entropy coding: arrays of weights in as few bytes as their distribution allows, and files made of them; no graph.

reader.py    bytes that may be anything, read with every length checked
huffman.py   Huffman codes, in deflate's form
ans.py       range asymmetric numeral systems
streams.py   bytes in the smallest of the codings, zeros apart where there are many
text.py      what is no tensor
pieces.py    a file as text and tensors: shared values, bytes of numbers, codes of few bits
container.py files as one file of coded pieces

`decoder.h` and `decoder.c` restore pieces on microcontrollers.
"""
