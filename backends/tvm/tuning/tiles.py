"""Candidates of our own: other register tiles for the kernels written by hand, in the order of the rule's model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from graphopt.backends.tvm import schedules
from graphopt.backends.tvm.schedules import Conv, Variant
from graphopt.backends.tvm.tuning.database import Database
from graphopt.backends.tvm.tuning.places import TuningDevice

CANDIDATES = 24  # tiles of a layer worth trying, the rule's own left out


def waiting(layers: Sequence[Conv], place: TuningDevice, database: Database) -> Iterator[tuple[Conv, Variant]]:
    """One tile for every layer, then the next, that were not measured yet."""
    candidates = [
        [(layer, tile) for tile in schedules.tiles_of(layer, place.machine)[1 : CANDIDATES + 1]] for layer in layers
    ]
    known = {layer: set(database.of(layer)) for layer in layers}
    for trials in zip_longest(*candidates):
        yield from (trial for trial in trials if trial is not None and trial[1] not in known[trial[0]])
