"""Does a refusal help? One sentence that names an operator, layer, input or output of the network, and says what to do."""

from __future__ import annotations

import re

from programs import Network

LONGEST = 600  # characters
REMEDY = re.compile(
    r"\b(use|pass|give|call|replace|write|keep|leave|capture|choose|compute|move|make|take|remove|apply|set|let|split|convert"
    r"|export|quantize|fix|lower|raise|put|return|rewrite|try|add|drop|cast|compare|run|build|wrap|name|train|clone)\b"
)


def unclear(message: str, network: Network) -> str:
    """What such a sentence lacks; empty where it lacks nothing."""
    if "\n" in message.strip():
        return "more than one line"
    if len(message) > LONGEST:
        return "long"
    if not names(message, network):
        return "names no operator, layer, input or output"
    return "" if REMEDY.search(message.lower()) else "says not what to do"


def names(message: str, network: Network) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Za-z]\w*", message)}
    known = {word.lower() for word in [*network.parts, *network.inputs, *network.operators]}
    if "interpolate" in known and any(word.startswith("upsample_") for word in words):
        return True  # ATen's name of it
    return (
        bool(words & known) or "aten." in message or any(word in message for word in ("output '", "the graph has no"))
    )  # what is missing has no name
