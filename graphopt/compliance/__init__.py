"""Does a model obey the rules of a target? For any ONNX file with QuantizeLinear and DequantizeLinear, whoever made it.

for violation in check("model.onnx", "hexagon"):
    print(violation)

model.py     an ONNX model as layers, operators and the grids of their values
grids.py     does a grid fit a number format?
rules.py     one function per rule
"""

from __future__ import annotations

from graphopt.compliance.model import Model, Source
from graphopt.compliance.rules import RULES, Violation
from graphopt.targets import Target, find

__all__ = ["RULES", "Violation", "check"]


def check(model: Source, target: str | Target) -> list[Violation]:
    """What a model has that the hardware of a target cannot compute, or not in integer.

    Args:
        model: an ONNX file, the folder of a deployed model, an artifact, or an `onnx.ModelProto`.
        target: a name or a `Target`.

    Returns:
        One line per violation: rule, node, what is wrong and what to do. Empty: the model obeys.

    Raises:
        InputError: there is no such file, or it is no ONNX model.
    """
    chosen, found = find(target), Model.read(model)
    return [violation for rule in RULES for violation in rule(found, chosen)]
