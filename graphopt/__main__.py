"""`python -m graphopt`."""

from graphopt.cli.main import main

main()
