"""HTTP routes for the browser: dictionaries, trainings, discoveries, their pictures, and stages. Read-only.

A name in a URL is one that ComfyUI lists for models/bestiary, or that of a run in output/bestiary, never a path. All routes
also exist under /api.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..concepts.errors import BestiaryError
from .host.concept_folders import FOLDER, SHIPPED, concept_path, dictionary_names, file_stamp
from .host.running_graph import running_server
from .part_dictionary.dictionary_loading import name_of_file

if TYPE_CHECKING:
    from aiohttp import web

    from .part_dictionary.dictionary_listing import ThumbnailPages

MOST_DICTIONARIES = 2000
"""Maximum number of names per response."""
LONGEST_ADDRESS = 400
"""Maximum characters of a name in a URL."""
_STARTED = secrets.token_hex(4)
"""Part of the ETags that distinguishes this server process from earlier ones."""
_WHOLE_PATH = re.compile(r"(?<![\w.:/\\])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\'\"]+[/\\])+")
"""Leading folders of an absolute path, unless they contain spaces."""
_log = logging.getLogger(__name__)

Handler = Callable[["web.Request"], Awaitable["web.Response"]]


def listed_dictionaries() -> dict[str, object]:
    """Files that may be dictionaries, with their sizes in bytes; their contents are read only when they are opened."""
    names = dictionary_names()
    facts = []
    for name in names[:MOST_DICTIONARIES]:
        # a broken link or a file deleted meanwhile must not break the list
        with contextlib.suppress(OSError, BestiaryError):
            facts.append({"name": name, "called": name_of_file(name), "bytes": concept_path(name).stat().st_size})
    return {"dictionaries": facts, "more": max(0, len(names) - MOST_DICTIONARIES)}


@functools.cache
def add_routes() -> bool:
    """Adds the routes once, before ComfyUI starts serving; returns False without a server, as in tests."""
    server = running_server()
    if server is None:
        return False
    for place, handler in (
        ("/bestiary/dictionaries", list_names),
        ("/bestiary/dictionary/{name:.+}", show_dictionary),
        ("/bestiary/thumbnails/{name:.+}", show_thumbnails),
        ("/bestiary/spectrum/{name:.+}", show_spectrum),
        ("/bestiary/newest_run/{name:.+}", show_newest_run),
        ("/bestiary/run/{name:.+}", show_run),
        ("/bestiary/run_picture/{name:.+}", show_run_picture),
        ("/bestiary/stage_steps", show_stage_steps),
        ("/bestiary/newest_discovery/{node:.+}", show_newest_discovery),
        ("/bestiary/discovered/{key:[0-9a-f]+}", show_discovery),
        ("/bestiary/discovered/{key:[0-9a-f]+}/picture", show_discovered_picture),
        ("/bestiary/discovered/{key:[0-9a-f]+}/labels", show_discovered_labels),
    ):
        server.routes.get(place)(handler)
    return True


async def list_names(request: web.Request) -> web.Response:
    """GET /bestiary/dictionaries."""
    return await _answer(request, _unstamped, listed_dictionaries)


async def show_dictionary(request: web.Request) -> web.Response:
    """GET /bestiary/dictionary/NAME; see `list_dictionary`."""
    from .part_dictionary.dictionary_listing import list_dictionary

    name = request.match_info["name"]
    return await _answer(request, lambda: file_stamp(name), lambda: list_dictionary(_known(name)))


async def show_thumbnails(request: web.Request) -> web.Response:
    """GET /bestiary/thumbnails/NAME?page=0: one page of thumbnails, WebP."""
    name, asked = request.match_info["name"], request.query.get("page", "0")

    def page() -> bytes:
        path = _known(name)
        if not (asked.isdecimal() and len(asked) <= 6):
            raise BestiaryError(f"page must be a non-negative integer, got {asked[:20]!r}")
        return _pages().page(path, file_stamp(name), int(asked))

    def stamp() -> str:
        own = file_stamp(name)
        return f"{own}-{asked[:6]}" if own else ""

    return await _answer(request, stamp, page)


async def show_spectrum(request: web.Request) -> web.Response:
    """GET /bestiary/spectrum/NAME; see `list_spectrum`."""
    from .spectrum.spectrum_listing import list_spectrum

    name = request.match_info["name"]
    return await _answer(request, lambda: file_stamp(name), lambda: list_spectrum(_known(name)))


async def show_newest_run(request: web.Request) -> web.Response:
    """GET /bestiary/newest_run/NAME?kind=parts: the latest run of a training of this name; `run` is null if there is none."""
    from .runs.run_listing import list_run, newest_run, run_stamp

    run = await asyncio.to_thread(newest_run, request.match_info["name"], request.query.get("kind"))
    if run is None:
        return await _answer(request, _unstamped, lambda: {"run": None})
    return await _answer(request, lambda: run_stamp(run), lambda: list_run(run))


async def show_run(request: web.Request) -> web.Response:
    """GET /bestiary/run/NAME; see `list_run`."""
    from .runs.run_listing import list_run, run_stamp

    name = request.match_info["name"]
    return await _answer(request, lambda: run_stamp(name), lambda: list_run(name))


async def show_run_picture(request: web.Request) -> web.Response:
    """GET /bestiary/run_picture/NAME?step=50&sheet=pictures: a preview, PNG."""
    from .runs.run_listing import preview_picture, preview_stamp

    name, sheet = request.match_info["name"], request.query.get("sheet", "pictures")
    asked = request.query.get("step", "")
    # int() raises ValueError for more than 4,300 digits
    step = int(asked) if asked.isdecimal() and len(asked) <= 12 else None

    def picture() -> bytes:
        if step is None:
            raise BestiaryError(f"step must be a non-negative integer, got {asked[:20]!r}")
        return preview_picture(name, step, sheet)

    return await _answer(
        request, lambda: "" if step is None else preview_stamp(name, step, sheet), picture, "image/png"
    )


async def show_stage_steps(request: web.Request) -> web.Response:
    """GET /bestiary/stage_steps?scheduler=normal&steps=20&...: steps per stage, see `count_steps`."""
    from .spectrum.stage_counts import count_steps, read_walk

    return await _answer(request, _unstamped, lambda: count_steps(read_walk(dict(request.query))))


async def show_newest_discovery(request: web.Request) -> web.Response:
    """GET /bestiary/newest_discovery/NODE?workflow=ID&client=ID: key of a node's latest discovery, or null."""
    from .part_map.found_parts import DISCOVERIES
    from .part_map.kept_discoveries import BlockPlace

    place = BlockPlace(request.query.get("workflow", ""), request.match_info["node"], request.query.get("client", ""))
    return await _answer(request, _unstamped, lambda: {"key": DISCOVERIES.newest_of(place)})


async def show_discovery(request: web.Request) -> web.Response:
    """GET /bestiary/discovered/KEY?edits=TEXT; see `describe_discovery`. Long edits come as `packed`, see `unpack_text`."""
    from .part_map.found_parts import describe_discovery

    key, asked = request.match_info["key"], request.query.get("edits", "") + request.query.get("packed", "")

    def described() -> dict[str, object]:
        packed = request.query.get("packed")
        return describe_discovery(key, request.query.get("edits", "") if packed is None else unpack_text(packed))

    return await _answer(request, lambda: _discovery_stamp(key, asked), described)


async def show_discovered_picture(request: web.Request) -> web.Response:
    """GET /bestiary/discovered/KEY/picture?number=0: a picture of the discovery, WebP."""
    from .part_map.found_parts import picture_of

    return await _answer(request, *_discovered(request, picture_of))


async def show_discovered_labels(request: web.Request) -> web.Response:
    """GET /bestiary/discovered/KEY/labels?number=0: numbers of the discovered parts on the patch grid, PNG."""
    from .part_map.found_parts import labels_of

    return await _answer(request, *_discovered(request, labels_of), "image/png")


def unpack_text(packed: str) -> str:
    """Text from its packed form in a URL: UTF-8, raw deflate, base64 with - and _ instead of + and /.

    Raises:
        BestiaryError: it is malformed.
    """
    from ..concepts.part_map.edit_script import LONGEST_SCRIPT

    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # bound the output: a small URL could expand to gigabytes
        plain = inflate.decompress(base64.urlsafe_b64decode(packed), 4 * LONGEST_SCRIPT + 1)
        return plain.decode()
    except (binascii.Error, zlib.error, ValueError) as fault:
        raise BestiaryError(f"packed edits of {len(packed)} characters cannot be read: {fault}") from fault


def _discovered(
    request: web.Request, read: Callable[[str, int], bytes]
) -> tuple[Callable[[], str], Callable[[], bytes]]:
    """Functions for the stamp and the content of a picture of a discovery."""
    key, asked = request.match_info["key"], request.query.get("number", "")

    def content() -> bytes:
        if not (asked.isdecimal() and len(asked) <= 6):
            raise BestiaryError(f"picture must be a non-negative integer, got {asked[:20]!r}")
        return read(key, int(asked))

    return lambda: _discovery_stamp(key, asked), content


def _discovery_stamp(key: str, asked: str) -> str:
    """Stamp of a discovery, which never changes while the server runs; empty if it is no longer in memory."""
    from .part_map.found_parts import DISCOVERIES

    return (
        f"{_STARTED}-{key}-{hashlib.sha256(asked.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        if DISCOVERIES.has(key)
        else ""
    )


@functools.cache
def _pages() -> ThumbnailPages:
    """One instance for all requests, because it caches pages."""
    from .part_dictionary.dictionary_listing import ThumbnailPages

    return ThumbnailPages()


def _known(name: str) -> Path:
    if len(name) > LONGEST_ADDRESS:
        raise BestiaryError(f"name too long: {len(name)} characters, at most {LONGEST_ADDRESS}")
    return concept_path(name)


def _unstamped() -> str:
    """Empty stamp, for responses that are never cached."""
    return ""


class _Found(NamedTuple):
    """Result of a request's work in a thread."""

    stamp: str
    content: object = None
    fault: str = ""


async def _answer(
    request: web.Request, stamp: Callable[[], str], content: Callable[[], object], kind: str = "image/webp"
) -> web.Response:
    """Response with JSON or a picture of this MIME type, an error as JSON, or 304 if the browser has the content already.

    `stamp` changes with the content and is empty if there is none; it and `content` access the disk and run in a thread.
    """
    from aiohttp import web

    found = await asyncio.to_thread(_look, request.path, request.headers.get("If-None-Match"), stamp, content)
    # no-cache means revalidate every time: a retrained dictionary shows its new thumbnails at once
    headers = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
    if found.fault:
        return web.json_response({"error": found.fault}, status=422 if found.stamp else 404, headers=headers)
    if found.stamp:
        headers["ETag"] = f'"{found.stamp}"'
    if found.content is None:
        return web.Response(status=304, headers=headers)
    if isinstance(found.content, bytes):
        return web.Response(body=found.content, content_type=kind, headers=headers)
    return web.json_response(found.content, headers=headers)


def _look(path: str, known: str | None, stamp: Callable[[], str], content: Callable[[], object]) -> _Found:
    """Stamp and content of a response; no content if the browser already has this stamp."""
    own = ""
    try:
        own = stamp()
        return _Found(own) if own and known == f'"{own}"' else _Found(own, content())
    except (BestiaryError, OSError) as fault:
        _log.info("%s: %s", path, fault)
        return _Found(own, fault=_plain_fault(fault))


def _plain_fault(fault: Exception) -> str:
    """The message without folders of this machine, which a browser must not see."""
    if isinstance(fault, OSError):
        return f"could not be read: {fault.strerror or 'unknown reason'}"
    text = str(fault)
    for folder in _folders():
        text = text.replace(f"{folder}/", "").replace(f"{folder}\\", "")
    # shorten any other absolute path to its last component
    return _WHOLE_PATH.sub("", text)


def _folders() -> list[str]:
    """Folders that may occur in a message, the longest first; they may contain spaces."""
    import folder_paths

    roots = [
        folder_paths.base_path,
        folder_paths.models_dir,
        folder_paths.get_output_directory(),
        str(SHIPPED),
        str(Path.home()),
    ]
    roots += folder_paths.get_folder_paths(FOLDER)
    # longest first, because one folder can contain another
    return sorted({form for root in roots for form in (str(root), os.path.realpath(root))}, key=len, reverse=True)
