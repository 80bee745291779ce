"""Networks for several budgets, from one look at a model.

run.py          `search`
recipe.py       what makes a network, as a text
candidate.py    one network made and judged, also in another process
results.py      what was found: points, their front, a page
folder.py       a search that can go on after an interruption
"""
