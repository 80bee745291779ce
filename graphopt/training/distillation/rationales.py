"""Distilling step by step: a language model learns a large one's answers, and its reasons for them.

    batches = [with_rationales(answers, reasons), ...]       two batches of tokens for the same questions, as one
    train(graph, batches, loss=Rationales(weight=1.0))

The question is asked twice, with another prefix ("[label]", "[rationale]"). Answers are the first half of a batch, reasons
the second:

    loss = cross entropy of the answers + weight * cross entropy of the reasons

each averaged over its own tokens. Reasons are learned beside the answers, not in front of them, so the deployed network gives the
answer at once.

Paper: Hsieh et al. 2023, "Distilling Step-by-Step!", eq. 3 and 4. (Their code has shares alpha and 1 - alpha in place of 1
and weight.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.training.losses import output
from graphopt.utils.errors import InputError

IGNORED = -100  # a target that does not count
LABELS = "labels"


@dataclass(frozen=True)
class Rationales:
    """The loss; see the head of this file.

    Attributes:
        weight: of the reasons.

    Raises:
        InputError: a weight below 0; where it is called: logits and targets that do not fit, an odd number of samples.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight must be at least 0, got {self.weight}")

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """Of logits [2N, tokens, vocabulary] and tokens [2N, tokens], -100 where none is wanted."""
        logits = output(outputs)
        if logits.dim() != 3 or targets.shape != logits.shape[:2] or len(targets) % 2:
            raise InputError(
                f"answers and reasons are logits [2N, tokens, vocabulary] and tokens [2N, tokens], got {list(logits.shape)} "
                f"and {list(targets.shape)}; with_rationales makes such batches"
            )
        answers, reasons = (
            F.cross_entropy(found.flatten(0, 1), wanted.flatten().long(), ignore_index=IGNORED)
            for found, wanted in zip(logits.chunk(2), targets.chunk(2), strict=True)
        )
        return answers + self.weight * reasons


def with_rationales(
    answers: Mapping[str, Tensor], reasons: Mapping[str, Tensor], *, padding: int = 0
) -> dict[str, Tensor]:
    """Two batches of tokens [N, tokens] as one of [2N, tokens], the shorter ones padded at the end.

    Args:
        answers, reasons: what the model takes, by name, and `labels`.
        padding: of inputs; `labels` have -100, masks 0.

    Raises:
        InputError: other names in one than in the other, or another number of samples.
    """
    if answers.keys() != reasons.keys():
        raise InputError(f"answers have {', '.join(answers)}, reasons {', '.join(reasons)}; give both the same")
    found = {}
    for name, one in answers.items():
        other, value = reasons[name], IGNORED if name == LABELS else 0 if "mask" in name else padding
        if len(one) != len(other):
            raise InputError(f"there are {len(one)} answers and {len(other)} reasons; give one of each for a question")
        width = max(one.shape[1], other.shape[1])
        found[name] = torch.cat([F.pad(each, (0, width - each.shape[1]), value=value) for each in (one, other)])
    return found
