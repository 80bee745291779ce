"""Names of the classes that a model tells apart, in the order of its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.utils import printing
from graphopt.utils.errors import InputError

MOST, LONGEST = 2**17, 1000  # names, characters of one


def class_labels(given: Any) -> list[str]:
    """Names in a list, or by number as in `config.id2label` of Transformers.

    Raises:
        InputError: they are none, too many or too long, or numbers are left out.
    """
    if isinstance(given, Mapping):
        numbered = {int(key): name for key, name in given.items() if str(key).isdecimal()}
        if sorted(numbered) != list(range(len(given))):
            raise InputError(
                f"class_labels: the names of {len(given)} classes are not numbered from 0 to {len(given) - 1}"
            )
        given = [numbered[number] for number in range(len(given))]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given or len(given) > MOST:
        raise InputError(f"class_labels must be a list of 1 to {MOST} names, got {_shown(given)}")
    for number, name in enumerate(given):
        if not isinstance(name, str) or not name or len(name) > LONGEST:
            raise InputError(
                f"class_labels: class {number} is called {_shown(name)}; give a name of 1 to {LONGEST} characters"
            )
    return list(given)


def misfit(labels: Sequence[str], shapes: Sequence[Sequence[int | None]]) -> str | None:
    """Why these are not the classes of a model; None where they are.

    Args:
        shapes: of its outputs, None where a size is free. Classes are counted by the first: [N, classes], [N, length, classes] or
            [N, classes, height, width].
    """
    shape = shapes[0] if shapes else ()
    if len(shape) not in (2, 3, 4):
        return f"the first output is {printing.sizes(shape)}, which has no classes"
    classes = shape[1] if len(shape) != 3 else shape[2]
    if classes in (None, len(labels)):
        return None
    return f"there are {len(labels)}, and the first output {printing.sizes(shape)} has {classes} classes"


def own_labels(model: Any, shapes: Sequence[Sequence[int | None]]) -> list[str]:
    """What a model of Transformers calls its classes; empty where it does not say."""
    config = getattr(model, "config", None)
    try:
        labels = class_labels(getattr(config, "id2label", None))
    except InputError:
        return []
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(labels))
    return [] if unnamed or misfit(labels, shapes) else labels


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
