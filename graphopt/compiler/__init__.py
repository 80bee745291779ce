"""From a model to a measured artifact, in one call.

optimize.py   `optimize`, `load`, `simulate`
options.py    the options of `optimize`, in groups
stages.py     its stages, in order
request.py    what it is asked for: the model, its data, the device
capturing.py  the graph that they begin with
work.py       what the stages hand on
recipes.py    the passes of a target
pipeline.py   passes as a text
option_values.py   what a text gives for an option of a pass
retraining.py  what passes leave, trained
ladder.py     ways to quantize, in the order of what they cost
runtimes.py   which runtime of this machine is faster
placement.py  which parts are faster in float than in integer
cache.py      results that are kept
doctor.py     what this machine can do
made_up.py    networks for measuring time, and where that is possible
latency.py    the time of graphs, measured and remembered
part_times.py  the time of their parts, likewise
supernet_times.py  the time of the networks of a supernet
budget/       channels, ranks, blocks and formats for a budget
search/       networks for several budgets
"""
