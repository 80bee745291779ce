"""How good a compressed model is, and why.

sensitivity.py     `analyze`: which layer loses accuracy
analysis.py        what it found
tensor_statistics.py  how well a grid fits a quantized activation or weight
fidelity.py        how far answers are from the original's, by output and channel
evaluate.py        integer share and fidelity of a result
network.py         a graph call by call, for tables and drawings
scores.py          its accuracy, by the caller's function
parts.py           what a runtime computes together
resized.py         parts by themselves, at other widths
kernel_costs.py    what its parts take in integer and in float, and which had better stay in float
timing.py          its time beside the original's
comparison.py      two artifacts side by side
devices.py         results that run elsewhere: what stands for them here, what they answer there
file_audit.py      `audit`: what of anyone's ONNX file computes in integer
float_regions.py   what computes in float between integers
compliance/        `check`: does a file obey the rules of a target?
plots.py           plots of an analysis
"""
