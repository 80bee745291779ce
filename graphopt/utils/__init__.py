"""What everything stands on and nothing of the compiler is in: errors, files, progress, checks of options.

errors.py      the exceptions that users meet
files.py       files and folders that appear whole or not at all
partial.py     temporary files beside a destination, and the rename that puts one in its place
archive.py     zip archives read within bounds
json_data.py   JSON read within bounds
alone.py       one thread at a time where the whole process is touched; random numbers put back
progress.py    progress of long work
checks.py      checks that the options of several passes share
imports.py     objects named on the command line: `package.module:name`
pass_text.py   passes as text
lazy.py        modules that are imported when they are first used
plugins.py     what packages of others add by entry points
version.py     versions of graphopt and of what it stands on
printing.py    the canonical text of a graph
tables.py      lines, tables and facts as data, and as plain text
printed.py     results that print and are kept as JSON
web.py         the same as HTML
svg.py         pictures as SVG text
charts.py      points and histograms as SVG
layout.py      where nodes of a graph are drawn
timings.py     seconds by stage and part
fronts.py      what nothing betters in both cost and gain
quantities.py  counts, bytes and ratios as people read them, multiples of channels
memory.py      memory of what was dropped, given back to the system
silence.py     libraries that print, kept quiet
terminal.py    what is drawn while a person watches
"""
