"""Sorts the pack's workflow templates, with the quickest start first.

ComfyUI lists the templates of a pack in the arbitrary order of the file system, and its page keeps that order.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...concepts.files.pack import ROOT
from .running_graph import running_server

if TYPE_CHECKING:
    from aiohttp import web

PACK = ROOT.name
"""Folder name of the pack, which is its key in ComfyUI's list of templates."""
FIRST_TEMPLATE = "mix_four_species"
_LISTS = frozenset({"/workflow_templates", "/api/workflow_templates"})


def in_order(names: list[str]) -> list[str]:
    """Names of templates sorted alphabetically after the first one."""
    return sorted(names, key=lambda name: (name != FIRST_TEMPLATE, name))


@functools.cache
def order_templates() -> bool:
    """Sorts the pack's entry in ComfyUI's list of templates; entries of other packs are unchanged.

    Must be called before ComfyUI starts serving. Returns False without a server, as in tests.
    """
    server = running_server()
    if server is None:
        return False
    from aiohttp import web

    @web.middleware
    async def ordered(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]):
        answer = await handler(request)
        # every other response must pass through unchanged
        if request.path not in _LISTS or not isinstance(answer, web.Response) or answer.status != 200:
            return answer
        listed = json.loads(answer.text or "{}")
        if PACK not in listed:
            return answer
        return web.json_response({**listed, PACK: in_order(listed[PACK])})

    server.app.middlewares.append(ordered)
    return True
