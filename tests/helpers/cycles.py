"""Instructions that a program executes on an emulated ARM CPU, and the cycles that LLVM's model of a core gives them.

    counts = executed(["qemu-arm", "-cpu", "max"], program, *arguments)      blocks of instructions -> executions
    counts.instructions
    counts.cycles(CORTEX_M7)

A plugin of qemu counts how often each block ran, llvm-mca says how many cycles the block takes where it repeats, and the products
are summed. The model knows a core's pipelines, not its caches, its memory or branches mispredicted: ratios mean more than totals.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("arm") / "count_blocks.c"
ITERATIONS = 100  # of each block, long enough that filling the pipeline does not count
COVERED = 0.999  # of the instructions: rarer blocks take the same cycles each
ATTEMPTS = 50  # at blocks of which llvm-mca names one unknown instruction at a time
CONDITIONS = "eq|ne|hs|lo|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le"


class Core(NamedTuple):
    """A core as LLVM names it."""

    triple: str
    cpu: str


CORTEX_M7 = Core("thumbv7em-none-eabihf", "cortex-m7")
CORTEX_M4 = Core("thumbv7em-none-eabihf", "cortex-m4")
NEOVERSE_N2 = Core("aarch64-linux-gnu", "neoverse-n2")


def missing() -> str:
    """What has to be installed first; empty where nothing has."""
    wanted = {"gcc": "gcc", "qemu-arm": "qemu-user", "llvm-mca-16": "llvm-16", "llvm-mc-16": "llvm-16"}
    packages = sorted({package for program, package in wanted.items() if shutil.which(program) is None})
    return f"needs an emulator that counts: apt-get install {' '.join(packages)}" if packages else ""


class Block(NamedTuple):
    """Machine code without a branch inside."""

    code: bytes
    instructions: int


@dataclass(frozen=True)
class Executed:
    """How often each block ran."""

    blocks: Counter[Block]

    @property
    def instructions(self) -> int:
        return sum(block.instructions * count for block, count in self.blocks.items())

    def __sub__(self, other: Executed) -> Executed:
        """What ran more often here."""
        return Executed(self.blocks - other.blocks)

    def cycles(self, core: Core) -> float:
        """Modelled; blocks that make up the last thousandth of the instructions are counted as the others are on average."""
        ranked = sorted(self.blocks.items(), key=lambda item: item[0].instructions * item[1], reverse=True)
        covered, chosen = 0, []
        for block, count in ranked:
            if covered >= COVERED * self.instructions:
                break
            covered += block.instructions * count
            chosen.append((block, count))
        modelled = cycles_of([block for block, _ in chosen], core)
        total = sum(count * each for (_, count), each in zip(chosen, modelled, strict=True))
        return total * self.instructions / max(covered, 1)


def executed(emulator: Sequence[str], *program: str | Path) -> Executed:
    """Run a program.

    Raises:
        CalledProcessError: it, or the compiler of the plugin, failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        counted = Path(folder, "blocks")
        plugin = _plugin()
        subprocess.run([emulator[0], "-plugin", f"{plugin},to={counted}", *emulator[1:], *program], check=True)
        blocks: Counter[Block] = Counter()
        for line in counted.read_text().splitlines():
            count, instructions, code = line.split()
            blocks[Block(bytes.fromhex(code), int(instructions))] += int(count)
        return Executed(blocks)


def cycles_of(blocks: Sequence[Block], core: Core) -> list[float]:
    """Of each block, per execution. Instructions that the model does not know are left out.

    Raises:
        RuntimeError: llvm-mca fails.
    """
    texts = [_assembly(block.code, core) for block in blocks]
    lines = [line for i, text in enumerate(texts) for line in (f"# LLVM-MCA-BEGIN b{i}", *text, f"# LLVM-MCA-END b{i}")]
    for _ in range(ATTEMPTS):
        done = _llvm("mca", core, "\n".join([*lines, ""]), f"--iterations={ITERATIONS}", "--json")
        if done.returncode == 0:
            regions = json.loads(done.stdout)["CodeRegions"]
            found = {r["Name"]: r["SummaryView"]["TotalCycles"] / ITERATIONS for r in regions if "SummaryView" in r}
            return [found.get(f"b{i}", 0.0) for i in range(len(blocks))]
        refused = {int(number) for number in re.findall(r"^<stdin>:(\d+):\d+: error", done.stderr, re.MULTILINE)}
        unknown = {" ".join(found.split()) for found in re.findall(r"note: instruction:(.*)", done.stderr)}
        if not refused | unknown:
            break
        lines = [s for i, s in enumerate(lines, 1) if i not in refused and " ".join(s.split()) not in unknown]
    raise RuntimeError(f"llvm-mca does not model these blocks for {core.cpu}: {done.stderr[-500:]}")


def _assembly(code: bytes, core: Core) -> list[str]:
    """Instructions in LLVM's syntax."""
    bytes_of = " ".join(f"0x{byte:02x}" for byte in code)
    lines = _llvm("mc", core, bytes_of, "--disassemble").stdout.splitlines()
    return _unconditional([line.strip() for line in lines if line.strip() and not line.strip().startswith(".")])


def _unconditional(lines: Sequence[str]) -> list[str]:
    """Without Thumb's `it`, which the models do not know, and without the conditions of what it makes conditional.

    Calls are left out, for which llvm-mca assumes a hundred cycles: what is called has blocks of its own.
    """
    found: list[str] = []
    conditional = 0
    for line in lines:
        if it := re.match(r"i(t[te]*)\s", line):
            conditional = len(it[1])
        elif conditional:
            conditional -= 1
            found.append(re.sub(rf"^(\w+?)({CONDITIONS})(?=[\s.]|$)", r"\1", line))
        elif not re.match(r"blx?r?\s", line):
            found.append(line)
    return found


def _llvm(tool: str, core: Core, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    triple = f"-{'m' * (tool == 'mca')}triple={core.triple}"
    command = [f"llvm-{tool}-16", triple, f"-mcpu={core.cpu}", *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@cache
def _plugin() -> Path:
    """Compiled once a process, next to nothing that anyone else could write."""
    path = Path(tempfile.mkdtemp(prefix="graphopt-")) / "count_blocks.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", SOURCE, "-o", path], check=True)
    return path
