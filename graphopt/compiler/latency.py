"""How long graphs take on the runtime of a target, measured and remembered.

    timer = LatencyTimer("x86")                    integers, as `optimize` would make them
    timer = LatencyTimer("x86", integer=False)     float
    timer([graph, other])                       milliseconds of each, taken in turn

Each graph is lowered as it would be deployed. What was measured once on a machine is read from a file afterwards (only whole
lists are: figures of different moments are not compared).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from graphopt.artifacts.registry import version
from graphopt.compiler.made_up import lowered, remembered, target_here
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.targets import Target
from graphopt.utils.files import make_folder, write_atomically


class LatencyTimer:
    """Times graphs on this machine.

    Args:
        target: a name or a `Target` of this machine's architecture.
        integer: quantize first (with made-up ranges: they do not matter for time).
        threads: of the runtime.
        cache: the file that remembers; None: `~/.cache/graphopt/latency.json` (or below `$XDG_CACHE_HOME`).
        repeats, seconds: rounds over the list, and when to stop early (after 5).

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
        repeats: int = 30,
        seconds: float = 6.0,
    ) -> None:
        self.target = target_here(target)
        self.integer, self.threads, self.repeats, self.seconds = integer, threads, repeats, seconds
        self.cache = Path(cache) if cache is not None else remembered("latency.json")

    def __call__(self, graphs: Sequence[Graph]) -> list[float]:
        known, key = self._read(), self._key(graphs)
        found = known.get(key)
        if isinstance(found, list) and len(found) == len(graphs):
            return [float(ms) for ms in found]
        times = self.fresh(graphs)
        make_folder(self.cache.parent)
        write_atomically(self.cache, json.dumps(self._read() | {key: times}, indent=0).encode())
        return times

    def fresh(self, graphs: Sequence[Graph]) -> list[float]:
        """Measured now, whatever is remembered: the median milliseconds of each."""
        calls = {}
        for number, graph in enumerate(graphs):
            artifact = lowered(graph.clone(share_weights=True), self.target, integer=self.integer)
            artifact.set_threads(self.threads)
            args, kwargs = graph.example.args, graph.example.kwargs
            calls[str(number)] = lambda a=artifact, args=args, kwargs=kwargs: a(*args, **kwargs)
        taken = cost.timings(calls, self.repeats, 3, self.seconds)
        return [taken.median(name) for name in calls]

    def _key(self, graphs: Sequence[Graph]) -> str:
        runtime = self.target.runtime.name
        how = [cost.host_cpu(), runtime, version(runtime), self.target.to_dict(), self.integer, self.threads]
        inputs = [[list(t.shape) for t in graph.example.tensors()] for graph in graphs]
        return hashlib.sha256(json.dumps([how, inputs, [str(g) for g in graphs]], default=str).encode()).hexdigest()

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self.cache.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
