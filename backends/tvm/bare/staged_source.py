"""The C around the kernels of stages: it returns as soon as a stage is sure, and says which one that was."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.backends.tvm.bare import decision
from graphopt.backends.tvm.bare.source import TYPES, Source
from graphopt.backends.tvm.bare.stages import Stages
from graphopt.policies import Policy


@dataclass(frozen=True)
class StagedSource(Source):
    """Attributes:
    stages: of which `calls` are all.
    """

    stages: Stages
    policy: Policy

    @property
    def given(self) -> list[str]:
        *tensors, workspace = super().given
        return [*tensors, "int *stage", workspace]

    @property
    def until(self) -> str:
        """The function that is given the last stage that may run."""
        return f"int {self.prefix}_run_until({', '.join([*self.given, 'int last_stage'])})"

    def macros(self) -> list[str]:
        return [f"#define {self.prefix.upper()}_STAGES {len(self.stages.ends)}", *super().macros()]

    def declarations(self) -> list[str]:
        return [
            "/* Computes stage by stage until one is sure, whose answer the outputs are; *stage, unless NULL, is its number,",
            " * from 0. Returns 0, or 1 where the workspace is missing or not aligned. */",
            f"{self.signature};",
            "",
            "/* The same with no stage behind last_stage, 0 or more, whose answer is taken as it is. */",
            f"{self.until};",
        ]

    def includes(self) -> list[str]:
        copies = any(self.stages.copies)
        return [*(decision.headers(self.policy) if self.decides else []), *(["<string.h>"] if copies else [])]

    @property
    def decides(self) -> bool:
        return any(threshold is not None for threshold in self.policy.thresholds)

    def functions(self) -> list[str]:
        if not self.decides:
            return []
        first = self.outputs[0]
        return decision.functions(self.policy, TYPES[first.dtype], int(first.shape[1] or 0))

    def bodies(self) -> list[str]:
        arguments = [word.rsplit(" ", 1)[1].lstrip("*") for word in self.given]
        upper = self.prefix.upper()
        return [
            f"{self.signature} {{",
            f"  return {self.prefix}_run_until({', '.join(arguments)}, {upper}_STAGES - 1);",
            "}",
            "",
            f"{self.until} {{",
            *self.checks("last_stage < 0"),
            *self.beginning(),
            *(line for number in range(len(self.stages.ends)) for line in self.stage(number)),
            "  return 0;",
            "}",
            "",
        ]

    def beginning(self) -> list[str]:
        lines = []
        if self.decides and self.policy.counts_agreement:
            lines += ["  int streak = 1, last = -1, now;"]
        if self.decides and self.policy.confidence == "learned":
            rows = [f"    {{{', '.join(map(repr, each))}}}," for each in self.policy.weights]
            lines += [f"  static const double weights[{len(rows)}][5] = {{", *rows, "  };"]
        return lines

    def stage(self, number: int) -> list[str]:
        """Its calls, and whether its answer is good enough."""
        ends, last = self.stages.ends, len(self.stages.ends) - 1
        begin = ends[number - 1] if number else 0
        copies = [self.copy(output, place) for output, place in self.stages.copies[number]]
        run = [*self.lines(range(begin, ends[number])), *copies]
        told = f"if (stage) *stage = {number};"
        lines = ["", f"  /* stage {number} */"]
        if number == last:
            return [*lines, *run, f"  {told}"]
        if self.skippable(number):
            alone = [f"  {line}" for line in [*run, f"  {told}", "  return 0;"]]
            return [*lines, f"  if (last_stage == {number}) {{ /* nothing stops here otherwise */", *alone, "  }"]
        return [*lines, *run, f"  {told}", *self.decided(number)]

    def decided(self, number: int) -> list[str]:
        lines, threshold, stops = [], self.policy.thresholds[number], f"last_stage == {number}"
        if self.decides and self.policy.counts_agreement:
            counted = ["now = predicted(output0);", "streak = now == last ? streak + 1 : 1;", "last = now;"]
            lines = [f"  {line}" for line in counted]
        if threshold is not None:
            stops += f" || {decision.sure(self.policy, number)} >= {float(threshold)!r}"
        return [*lines, f"  if ({stops}) return 0;"]

    def skippable(self, number: int) -> bool:
        """Whether a stage need not run: nothing stops at it, and nothing reads what it computes."""
        unasked = self.policy.thresholds[number] is None and not self.policy.counts_agreement
        return unasked and number not in self.stages.handing
