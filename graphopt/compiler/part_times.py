"""What parts of networks take on the runtime of a target, by themselves, measured once and remembered.

    times = PartTimes("host")
    times([alone, other])           milliseconds of each; see `graphopt.evaluation.resized`

Parts that are not known yet are lowered together, as branches of one network, and profiled; what being watched adds to a
kernel is taken off, and of several profiles the lower quartile counts. Everything measured is kept in a file for each
machine, runtime and target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphopt.artifacts.profile import Profile
from graphopt.artifacts.registry import version
from graphopt.compiler.made_up import lowered, remembered, target_here
from graphopt.evaluation.parts import converts
from graphopt.evaluation.resized import Alone, Branches
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.targets import Target
from graphopt.utils.files import make_folder, write_atomically
from graphopt.utils.progress import progress

TOGETHER = 48  # parts that are lowered at once
ROUNDS, RUNS = 4, 40  # of profiles
LEAST_MS = 1e-5
METHOD = 2  # of measuring: what another measured is not read


class PartTimes:
    """Times parts on this machine.

    Args:
        target: a name or a `Target` of this machine's architecture.
        integer: as `optimize` would make them; else in float.
        threads: of the runtime.
        cache: a folder that remembers; None: `~/.cache/graphopt/parts` (or below `$XDG_CACHE_HOME`).

    Raises:
        InputError: the target is of another architecture, so nothing can be timed here.
    """

    def __init__(
        self,
        target: str | Target = "host",
        *,
        integer: bool = True,
        threads: int = 1,
        cache: str | Path | None = None,
    ) -> None:
        self.target, self.integer, self.threads = target_here(target), integer, threads
        folder = Path(cache) if cache is not None else remembered("parts")
        runtime = self.target.runtime.name
        how = [METHOD, cost.host_cpu(), runtime, version(runtime), self.target.to_dict(), integer, threads]
        digest = hashlib.sha256(json.dumps(how, default=str).encode()).hexdigest()
        self.file = folder / f"{digest[:32]}.json"

    def __call__(self, parts: Sequence[Alone]) -> list[float]:
        known = self._read()
        missing = list({part.key: part for part in parts if part.key not in known}.values())
        with progress("timing parts on the runtime", total=len(missing)) as advance:
            for start in range(0, len(missing), TOGETHER):
                some = missing[start : start + TOGETHER]
                measured = dict(zip((part.key for part in some), self.fresh(some), strict=True))
                known = self._read() | measured  # another process may have written meanwhile
                make_folder(self.file.parent)
                write_atomically(self.file, json.dumps(known, indent=0).encode())
                for _ in some:
                    advance()
        return [known[part.key] for part in parts]

    def fresh(self, parts: Sequence[Alone]) -> list[float]:
        """Measured now, whatever is remembered."""
        branches = Branches(parts).eval()
        graph = Graph.capture(branches, branches.example(), dynamic_batch=False)
        artifact = lowered(graph, self.target, integer=self.integer)
        artifact.set_threads(self.threads)
        args = graph.example.args
        taken = [_by_branch(artifact.profile(*args, runs=RUNS), len(parts)) for _ in range(ROUNDS)]
        return [max(LEAST_MS, float(np.quantile(times, 0.25))) for times in zip(*taken, strict=True)]

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return {k: float(v) for k, v in found.items() if isinstance(v, (int, float))} if isinstance(found, dict) else {}


def _by_branch(profile: Profile, count: int) -> list[float]:
    found = [0.0] * count
    for kernel in profile.kernels:
        words = kernel.layer.split(".")
        if words[0] == "branches" and not converts(kernel):
            found[int(words[1])] += kernel.ms - profile.watching_ms
    return found
