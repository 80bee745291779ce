"""What really runs of a file: in integer, in float and why, and rewrites that let more of it run in integer.

operators.py    operators by what they compute in
reading.py      the graph that runs, and what each of its operators computes in
artifacts.py    our own artifacts
files.py        anyone's files
float_regions.py  operators in float that hand values to each other
case.py         one of them, where it stands in the file
reasons.py      why it computes in float
saturation.py   layers whose sums can saturate on a CPU without VNNI
work.py         multiply-accumulates
fixes/          rewrites, one file each
compare.py      a file and its fix, side by side
"""

from graphopt.backends.onnxruntime.audit.artifacts import audit
from graphopt.backends.onnxruntime.audit.files import audit_file, fix
from graphopt.backends.onnxruntime.audit.operators import FLOAT_WORK, INTEGER_WORK, NEUTRAL
from graphopt.backends.onnxruntime.audit.reading import optimized

__all__ = ["FLOAT_WORK", "INTEGER_WORK", "NEUTRAL", "audit", "audit_file", "fix", "optimized"]
