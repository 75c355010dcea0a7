"""The graph that ComfyUI is running, for what a node must know before ComfyUI asks it for results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any


def running_server() -> Any | None:
    """ComfyUI's server; None where nodes run without it, as in tests and scripts."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def running_graphs() -> Iterator[Mapping[str, Mapping]]:
    """The graphs that are being run, as they were queued: number of a node -> `class_type` and `inputs`; none without a server."""
    queue = getattr(running_server(), "prompt_queue", None)
    if queue is not None:
        running, _ = queue.get_current_queue_volatile()
        # number in the queue, identifier, graph, ...
        yield from (item[2] for item in running)


def linked_nodes(graph: Mapping[str, Mapping], class_type: str, output: int) -> list[str]:
    """Numbers of the nodes of a class whose output is linked to anything in a graph, in the order of the text."""
    links = [value for node in graph.values() for value in node.get("inputs", {}).values() if isinstance(value, list)]
    linked = {link[0] for link in links if len(link) == 2 and link[1] == output}
    return sorted(number for number, node in graph.items() if node.get("class_type") == class_type and number in linked)
