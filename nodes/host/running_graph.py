"""Access to the graph that ComfyUI is currently running."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any


def running_server() -> Any | None:
    """ComfyUI's server; None if nodes run without one, as in tests and scripts."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def running_graphs() -> Iterator[Mapping[str, Mapping]]:
    """The running graphs as queued: node id -> `class_type` and `inputs`; none without a server."""
    queue = getattr(running_server(), "prompt_queue", None)
    if queue is not None:
        running, _ = queue.get_current_queue_volatile()
        # queue items are tuples (number, identifier, graph, ...)
        yield from (item[2] for item in running)


def linked_nodes(graph: Mapping[str, Mapping], class_type: str, output: int) -> list[str]:
    """Ids of the nodes of a class whose output is linked to any input of a graph, sorted as text."""
    links = [value for node in graph.values() for value in node.get("inputs", {}).values() if isinstance(value, list)]
    linked = {link[0] for link in links if len(link) == 2 and link[1] == output}
    return sorted(number for number, node in graph.items() if node.get("class_type") == class_type and number in linked)
