"""English texts of nodes: the frontend and the schemas read the same file."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from ...concepts.files.pack import ROOT

_LITERAL = re.compile(r"\{'([{}@|])'\}")
"""Escape syntax of vue-i18n, which reads the same file in the browser, for its special characters."""


def node_texts(node_id: str) -> dict[str, Any]:
    """`display_name`, `description`, `inputs` {name: {name, tooltip}} and `outputs` {number: {name, tooltip}} of a node.

    Raises:
        KeyError: the node is missing in locales/en/nodeDefs.json.
    """
    return _english()[node_id]


@cache
def _english() -> dict[str, Any]:
    """Texts of all nodes, unescaped."""
    text = (ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")
    return json.loads(_LITERAL.sub(r"\1", text))
