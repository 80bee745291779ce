"""A budget becomes passes: choices, what they cost, the best within the limits, and a look whether it holds.

1. Widths of all groups of channels, ranks and number formats of layers and residual blocks are choices, each with the damage it
   does to the output, measured alone.
2. What they cost is the sum of terms (`costs.py`); milliseconds are those of the network's parts, timed by themselves on the
   runtime, corrected by the times of some whole networks (`correction.py`).
3. A solver chooses (`graphopt.searching`).
4. A network of these choices with made-up weights is counted, and where time is limited lowered and timed in turn with the float
   original. Where it misses a limit, it corrects the prediction, too, and the choice is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphopt.compiler.budget.planner import Planner
from graphopt.compiler.work import Work
from graphopt.ir.passes import Pass


def spend(work: Work, budget: Mapping[str, float]) -> list[Pass]:
    """The passes that bring the network of a work into a budget; the report gets what was measured.

    Raises:
        InputError: the budget is out of reach, or the network has nothing to choose.
    """
    planner = Planner(work, budget)
    plan = planner(budget)
    formats = planner.spending.layer_formats(plan.assignment, planner.spending.mock(plan.assignment))
    if formats:  # for the passes that quantize
        quantization = replace(work.options.quantization, formats=formats)
        work.request = replace(work.request, options=replace(work.options, quantization=quantization))
    if not plan.holds:
        work.report.warnings.append(f"the budget is missed: {plan}")
    work.report.notes.append(f"widths, ranks, blocks and formats were chosen for a budget: {plan}")
    if planner.correction is not None and (agreement := planner.correction.agreement()) is not None:
        work.report.notes.append(f"predicted and measured times of the networks looked at agree: {agreement}")
    return planner.spending.passes(plan.assignment)
