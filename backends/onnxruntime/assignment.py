"""Who computes what: operators as ONNX Runtime distributes them over its providers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

RECORD = "session.record_ep_graph_assignment_info"  # set to "1" for sessions that are asked


def not_on(providers: Collection[str], session: Any) -> list[tuple[str, str]]:
    """Name and type of the operators that a session gives to other providers."""
    parts = session.get_provider_graph_assignment_info()
    nodes = [node for part in parts if part.ep_name not in providers for node in part.get_nodes()]
    return list(dict.fromkeys((own_name(node.name), str(node.op_type)) for node in nodes))


def own_name(name: str) -> str:
    """What a node was called before the runtime copied it."""
    return name.partition("_token_")[0].partition("/")[0]
