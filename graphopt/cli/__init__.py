"""The command line, one file to each kind of work.

main.py        the program: its commands, `--version`
optimize.py    `optimize`, `run`, `compile`, `demo`
search.py      `search`
inspect.py     `analyze`, `targets`, `passes`, `show`, `profile`, `doctor`
evaluate.py    `check`, `audit`, `compare`
cascade.py     `cascade`
common.py      options of every command: `--debug`, `-v`, `--log-file`
logs.py        what the library logs, shown and kept
completion.py  `completion`: what shells complete
config.py      options in a file
arguments.py   what several commands read in the same way
reporting.py   errors as one line and an exit code
terminal.py    bars and tables, drawn with rich

PyTorch is imported where a command needs it: `graphopt --help` answers at once.
"""
