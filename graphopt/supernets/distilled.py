"""The student that learns best from a given teacher: networks are trained for a moment by it, and scored by what they know then.

    reward = distilled(teacher, (images, labels), accuracy, epochs=1)
    found = search(graph, {"macs": 0.5}, evaluate=reward, data=[[images]], solver="reinforce", evaluations=50)

Every network that the search asks about is extracted, trained with the teacher's answers as targets beside the labels, and
scored; what was trained is dropped. In the paper the reward is multiplied by a power of the latency; here the search keeps a
limit of it.

Paper:  Liu et al. 2020, "Search to Distill: Pearls are Everywhere but not the Eyes" (AKD), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphopt.analysis.choices import extract
from graphopt.supernets.proxies import graph_of
from graphopt.training.distillation import Response
from graphopt.training.trainer import Evaluate, train


def distilled(
    teacher: Any,
    data: Any,
    evaluate: Evaluate,
    *,
    temperature: float | None = 4.0,
    weight: float = 1.0,
    **options: Any,
) -> Callable[[Callable[..., Any]], float]:
    """For `evaluate` of a search.

    Args:
        teacher, temperature, weight: as for `graphopt.training.Response`. data: as for `graphopt.train`.
        evaluate: of a trained network, higher is better; on data that it was not trained on.
        **options: of `graphopt.train`, such as `epochs` and `rate`. Without `seed`, all networks see data in the same order.
    """

    def reward(model: Callable[..., Any]) -> float:
        student = extract(graph_of(model))
        train(student, data, compress=[Response(teacher, temperature=temperature, weight=weight)], **options)
        return float(evaluate(student.eval()))

    return reward
