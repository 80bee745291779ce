"""What `usage()` says of an artifact of stages: a function for each stage, and ten lines that decide between them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from graphopt.artifacts.usage import Calls
from graphopt.policies import Network, Policy, elementary
from graphopt.utils.errors import InputError
from graphopt.utils.files import MANIFEST

EVEN = "1.0 + np.cumsum(p * log(np.maximum(p, np.finfo(np.float64).tiny)))[-1] / log(np.array([float(len(p))]))[0]"
SURE = {  # from the probabilities p of one sample
    "softmax": ["    sure = p.max()"],
    "entropy": [f"    sure = min(max({EVEN}, 0.0), 1.0)"],
    "margin": ["    sure = np.sort(p)[-1] - np.sort(p)[-2]"],
    "agreement": ["    sure = (streak - 1) / max(number, 1)"],
    "learned": [
        "    features = [",
        "        p.max(), np.sort(p)[-1] - np.sort(p)[-2],",
        f"        min(max({EVEN}, 0.0), 1.0),",
        "        (streak - 1) / max(number, 1), 1.0,",
        "    ]",
        "    total = sum(f * w for f, w in zip(features, weights[min(number, len(weights) - 1)]))",
        "    small = exp(np.array([-abs(total)]))[0]",
        "    sure = (small if total < 0 else 1.0) / (1.0 + small)",
    ],
}
COUNTED = [  # where confidence asks how many stages in a row say the same
    "    streak = streak + 1 if number and p.argmax() == last else 1",
    "    last = p.argmax()",
]


def calls(each: Sequence[Calls], folders: Sequence[str], network: Network, policy: Policy) -> Calls:
    """How all stages are opened and called, one sample at a time.

    Args:
        each: of the stages. folders: where their files lie, below the artifact's.

    Raises:
        InputError: confidence is a function.
    """
    if not isinstance(policy.confidence, str) or policy.confidence not in SURE:
        raise InputError(
            f"usage() knows the confidences {', '.join(SURE)}; artifacts whose confidence is a function are called through "
            "graphopt.load"
        )
    batch = next((c.batch for c in each if c.batch is not None), None)
    if batch not in (None, 1):
        raise InputError(f"a stage computes {batch} samples at once; the program of usage() decides about one")
    opened = ["root = folder"]
    for number, (stage, where) in enumerate(zip(each, folders, strict=True)):
        opened += _function(number, stage, where)
    temperatures = list(policy.temperatures or [1.0] * policy.stages)
    counts = policy.counts_agreement
    run = [
        f"stages = [{', '.join(f'stage_{n}()' for n in range(len(each)))}]",
        f"reads = {[list(sources) for sources in network.reads]!r}",
        f"thresholds, temperatures = {list(policy.thresholds)!r}, {temperatures!r}",
        *([f"weights = {[list(each) for each in policy.weights]!r}"] if policy.weights else []),
        *(["streak, last = 1, None"] if counts else []),
        "held = {(-1, number): array for number, array in enumerate(inputs)}",
        "for number, run in enumerate(stages):",
        "    outputs = run([held[source] for source in reads[number]])",
        "    held.update({(number, place): array for place, array in enumerate(outputs)})",
        "    powers = outputs[0][0].astype(np.float64) / temperatures[number]",
        "    p = exp(powers - np.fmax.reduce(powers))",
        "    p /= np.cumsum(p)[-1]",
        *(COUNTED if counts else []),
        *SURE[policy.confidence],
        "    if number == len(thresholds) or thresholds[number] is not None and sure >= thresholds[number]:",
        "        break",
        f"outputs = outputs[:{network.answers}]",
        'print("answered by stage", number)',
    ]
    return Calls(
        imports=list(dict.fromkeys(line for stage in each for line in stage.imports)),
        first=list(dict.fromkeys(line for stage in each for line in stage.first if line)),
        open=[*_mathematics(), *opened],
        run=run,
        labels=f'json.load(open(os.path.join(root, {MANIFEST!a}), encoding="utf-8"))["labels"]',
        batch=batch,
    )


def _mathematics() -> list[str]:
    """`exp` and `log` whose last bits are the same on every machine, as text."""
    text = inspect.getsource(elementary)
    return [
        "",
        "from typing import Any",
        "",
        *text[text.index("Array = ") : text.index("class Functions")].splitlines(),
    ]


def _function(number: int, stage: Calls, where: str) -> list[str]:
    """A function that opens a stage and returns what runs it."""
    body = [f"folder = os.path.join(root, {where!a})", *stage.open, "def run(inputs):"]
    inner = [*stage.run, "return outputs"]
    lines = [f"    {line}" for line in body] + [f"        {line}" for line in inner] + ["    return run"]
    return ["", f"def stage_{number}():", *lines, ""]
