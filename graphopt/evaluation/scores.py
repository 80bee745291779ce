"""Accuracy, as the caller's own function measures it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from graphopt.artifacts.report import Report
from graphopt.utils.errors import InputError, first_line

Evaluate: TypeAlias = Callable[[Callable[..., Any]], float]  # from what behaves like a model to its accuracy


def score(evaluate: Evaluate, model: Callable[..., Any], what: str) -> float:
    """What the caller's function says of a model.

    Args:
        what: the model, in words, for errors.

    Raises:
        InputError: it raised, or returned something that is no number.
    """
    try:
        with torch.no_grad():
            value = evaluate(model)
    except Exception as error:
        reason = first_line(error, "no message")
        raise InputError(f"evaluate raised {type(error).__name__} for {what}: {reason}") from error
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise InputError(f"evaluate must return a number, got {type(value).__name__} for {what}") from None
    if math.isnan(value):
        raise InputError(f"evaluate returned NaN for {what}")
    return value


def last_score(evaluate: Evaluate, artifact: Callable[..., Any], report: Report) -> float | None:
    """The score of the result; work that is done is not thrown away where it cannot be had."""
    try:
        return score(evaluate, artifact, "the artifact")
    except InputError as error:
        report.missing["accuracy"] = str(error)
        report.warnings.append(str(error))
        return None
