"""Whether a model as C and objects fits a microcontroller's memory, and what takes most where it does not."""

from __future__ import annotations

import re

from graphopt.artifacts.manifest import Manifest
from graphopt.utils import quantities
from graphopt.utils.errors import InputError

OBJECTS = "objects"  # in a manifest's options: what is known of C and objects
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}
SHOWN = 4  # tensors


def memory_size(text: str) -> int:
    """Bytes: "65536", "64K" and "64k" are the same, "1M" is 1048576.

    Raises:
        InputError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KM]?)B?", text.strip().upper())
    if found is None:
        raise InputError(f"{text!r} is no size of memory; write bytes, or 64K or 1M for multiples of 1024")
    return int(float(found[1]) * UNITS[found[2]])


def misfits(manifest: Manifest, ram: int | None = None, flash: int | None = None) -> list[str]:
    """A sentence for each memory that is too small, in bytes; None: as much as it takes.

    RAM is the workspace, without inputs, outputs and the stack; flash is code and constants of the objects.

    Raises:
        InputError: the artifact is not C and objects.
    """
    facts = manifest.options.get(OBJECTS)
    if facts is None:
        raise InputError(f"{manifest.model} is not C and objects, whose memory is known; compile it first")
    found = []
    used, constants = int(facts["workspace_bytes"]), int(facts["weight_bytes"])
    if ram is not None and used > ram:
        most = facts["fullest"]
        lying = [f"{name} {quantities.size(size)}" for name, size in most["tensors"]]
        found.append(
            f"the workspace takes {quantities.size(used)} of RAM, {quantities.size(used - ram)} too much; while "
            f"{most['call']} runs, there lie {quantities.few(lying, SHOWN)}"
        )
    stored = int(facts["code_bytes"]) + constants
    if flash is not None and stored > flash:
        found.append(
            f"code and constants take {quantities.size(stored)} of flash, {quantities.size(stored - flash)} too much: "
            f"{quantities.size(stored - constants)} of code and {quantities.size(constants)} of constants"
        )
    return found
