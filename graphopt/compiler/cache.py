"""Results that are kept: the same call for the same model and data is answered from a folder.

    cache/
      3f2a.../          the artifact, with its report
      3f2a....graph     the simulated graph

A result's name is a hash of all that it depends on: the captured graph with its weights, example and calibration data, target,
options, processor, the libraries' versions and graphopt's own code. Files appear whole or not at all, so several processes may
share a folder; nothing that is read from it is executed. To empty it, remove it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Report
from graphopt.compiler.work import Work
from graphopt.evaluation.scores import score
from graphopt.fitting.journal import fingerprint
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.utils.errors import GraphoptError
from graphopt.utils.files import make_folder
from graphopt.utils.version import versions

LOG = logging.getLogger(__name__)
Result = tuple[Artifact, Report, Graph]
PACKAGE = Path(__file__).parents[1]


class Cache:
    """A folder of results.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = make_folder(folder)

    def result(self, work: Work, passes: Any, make: Callable[[], Result], load: Callable[[Path], Artifact]) -> Result:
        """The result of a work: what was kept, or what is made now and kept.

        Args:
            passes: as they were given.
            load: opens a saved artifact.
        """
        if why := _untold(work, passes):
            work.report.notes.append(f"the cache was not asked: {why}")
            return make()
        name = self._name(work, passes)
        if (found := self._find(name, work, load)) is not None:
            return found
        artifact, _, graph = made = make()
        graph.save(self.folder / f"{name}.graph")  # first: where the artifact is, all is
        artifact.save(self.folder / name)
        return made

    def _name(self, work: Work, passes: Any) -> str:
        asked = {
            **work.request.plain(),
            "target": work.target.to_dict(),
            "passes": passes,
            "labels": list(work.labels),
            "made up": work.data.synthetic,
            "versions": versions(),
            "code": _code(),
            "processor": cost.host_cpu(),
        }
        del asked["evaluate"], asked["calibration"], asked["checkpoint"]
        # Inputs that are made up follow from the graph and its example, and may not be there yet.
        data = () if work.data.synthetic else (*work.data, *(work.held_out or ()))
        batches = [work.original.example.tensors(), *data]
        return fingerprint([work.original], batches, json.dumps(asked, sort_keys=True, default=str))

    def _find(self, name: str, work: Work, load: Callable[[Path], Artifact]) -> Result | None:
        """A result that was kept; accuracy is measured anew. None where there is none, or it is damaged."""
        place = self.folder / name
        if not place.exists():
            return None
        try:
            artifact, graph = load(place), Graph.load(self.folder / f"{name}.graph")
        except GraphoptError as error:
            LOG.warning("%s cannot be read, and is made again: %s", place, error)
            return None
        report = artifact.report
        if report is None:
            return None
        report.notes.append(f"all but accuracy was taken from the cache {self.folder}: this call was made before")
        if (evaluate := work.request.evaluate) is not None:
            report.accuracy_before = work.report.accuracy_before
            report.accuracy_after = score(evaluate, artifact, "the artifact")
        return artifact, report, graph


def _untold(work: Work, passes: Any) -> str:
    """Why a result has no name; empty where it has one."""
    chosen = work.options
    if passes is not None and not isinstance(passes, str):
        return "passes are objects; give them as a text"
    if chosen.quantization.max_drop is not None:
        return "max_drop lets evaluate decide, which is a function"
    if work.request.train is not None:
        return "it tells trainings apart by their data, which may be too many to read"
    if work.data.one_shot:
        return "the calibration data can be gone through only once"
    if work.request.dump is not None or chosen.measurement.device is not None or chosen.tuning.asked_for:
        return "dump, device and tune ask for more than a result"
    return ""


@functools.cache
def _code() -> str:
    """A hash of the sources of graphopt, so that another version of them has results of its own."""
    digest = hashlib.sha256()
    for path in sorted(
        p for folder in (PACKAGE, PACKAGE / "passes", PACKAGE / "backends") for p in folder.rglob("*.py")
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()
