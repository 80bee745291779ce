"""What the command line does, one file to each kind of work; `graphopt.cli.main` gathers them.

PyTorch is imported where a command needs it: `graphopt --help` answers at once.
"""
