"""Random networks through everything: torch, the passes, ONNX Runtime, TVM and `simulate` must agree, or refuse in a sentence.

    python tests/fuzz/networks.py --seeds 0:1000 [--checks capture,passes,onnx] [--workers 2] [--results results.jsonl]
    python tests/fuzz/networks.py --seeds 17 --checks onnx --show      the network of one seed, and what is wrong, shrunken
    python tests/fuzz/networks.py --generator nnsmith                  networks that NNSmith draws, where it is installed

Outcomes are written as they are found, one line of JSON each; a run that is started again with the same file goes on where it
stopped. At the end a table of counts is printed, and refusals and faults by kind, as JSON too with `--json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # where pytest's configuration has it
import generate
import nnsmith_networks
from checks import CHECKS
from outcomes import Outcome
from programs import Network
from shrink import kind_of, shrink

KINDS = ("ok", "refused", "warning", "wrong", "foreign", "unclear")
Line = dict[str, Any]
GENERATORS: dict[str, Callable[[int], Network]] = {"own": generate.generate, "nnsmith": nnsmith_networks.generate}


def try_one(seed: int, checks: Iterable[str], generator: str = "own") -> list[Line]:
    """A line for each check of one network."""
    network = GENERATORS[generator](seed)
    lines = []
    for name in checks:
        outcome = CHECKS[name](network)
        kind, message = (outcome.kind, outcome.message) if outcome else ("ok", "")
        line = {"seed": seed, "check": name, "kind": kind, "message": message}
        lines.append(line if generator == "own" else {"generator": generator, **line})
    return lines


def run(seeds: Iterable[int], checks: list[str], results: Path, workers: int = 1, generator: str = "own") -> list[Line]:
    """Outcomes of all seeds, those that the file has already included."""
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    done = [line for line in done if line.get("generator", "own") == generator]
    known = {(line["seed"], line["check"]) for line in done}
    work = [(seed, left, generator) for seed in seeds if (left := [c for c in checks if (seed, c) not in known])]
    with results.open("a") as file:
        for lines in _outcomes(work, workers):
            for line in lines:
                file.write(json.dumps(line) + "\n")
            file.flush()
            done += lines
    wanted = set(seeds)
    return [line for line in done if line["seed"] in wanted and line["check"] in checks]


def _outcomes(work: list[tuple[int, list[str], str]], workers: int) -> Iterator[list[Line]]:
    if workers == 1:
        yield from map(_work, work)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _prepare) as pool:
        yield from pool.imap_unordered(_work, work)


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _work(item: tuple[int, list[str], str]) -> list[Line]:
    return try_one(*item)


def summary(lines: list[Line]) -> dict[str, Any]:
    """Counts by check and kind, and of all but `ok` the messages by their kind, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    messages: dict[str, list[Line]] = {}
    for line in lines:
        of_check = counts.setdefault(line["check"], dict.fromkeys(KINDS, 0))
        of_check[line["kind"]] += 1
        if line["kind"] != "ok":
            messages.setdefault(f"{line['check']}: {line['kind']}: {kind_of(line['message'])}", []).append(line)
    found = [
        {"kind": kind, "count": len(of), "seeds": sorted(line["seed"] for line in of)[:10], "example": of[0]["message"]}
        for kind, of in sorted(messages.items(), key=lambda item: -len(item[1]))
    ]
    return {"networks": len({line["seed"] for line in lines}), "checks": counts, "messages": found}


def table(found: dict[str, Any]) -> str:
    rows = [["check", *KINDS], *([check, *map(str, of.values())] for check, of in found["checks"].items())]
    return "\n".join("  ".join(cell.rjust(11) for cell in row) for row in rows)


def shrunken(network: Network, check: str, seconds: float = 120.0) -> tuple[Network, Outcome]:
    """The smallest network found that fails in the same way, and how."""
    last: dict[str, Outcome] = {}

    def fails(candidate: Network) -> str | None:
        outcome = CHECKS[check](candidate)
        if outcome is None:
            return None
        word = f"{outcome.kind}: {kind_of(outcome.message)}"
        last[candidate.text()] = outcome
        return word

    small = shrink(network, fails, seconds)
    return small, last[small.text()]


def show(seed: int, checks: list[str], seconds: float, generator: str = "own") -> None:
    network = GENERATORS[generator](seed)
    for check in checks:
        if CHECKS[check](network):
            small, outcome = shrunken(network, check, seconds)
            print(f"# seed {seed}, {check}: {outcome.kind}: {outcome.message}\n{small.text()}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100", help="first:last (not included), or one")
    parser.add_argument("--generator", choices=GENERATORS, default="own", help="what draws the networks")
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("/tmp/networks.jsonl"))
    parser.add_argument("--json", type=Path, help="where to write the counts")
    parser.add_argument("--show", action="store_true", help="shrink what fails, and print it")
    parser.add_argument("--seconds", type=float, default=120.0, help="for shrinking one network")
    options = parser.parse_args()
    first, _, last = options.seeds.partition(":")
    seeds, checks = range(int(first), int(last or int(first) + 1)), options.checks.split(",")
    if unknown := set(checks) - set(CHECKS):
        parser.error(f"no checks {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if options.generator == "nnsmith" and (why := nnsmith_networks.missing()):
        parser.exit(0, f"skipped: {why}\n")
    _prepare()
    if options.show:
        for seed in seeds:
            show(seed, checks, options.seconds, options.generator)
        return
    found = summary(run(seeds, checks, options.results, options.workers, options.generator))
    print(table(found))
    for each in found["messages"]:
        print(
            f"{each['count']:5}  {each['kind']}  (seeds {', '.join(map(str, each['seeds']))})\n       {each['example'][:300]}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
