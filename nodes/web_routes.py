"""What the browser may ask: dictionaries, trainings, discoveries, their pictures, and stages. Reading only.

A name in an address is one of those that ComfyUI lists for models/bestiary, or of a run in output/bestiary, never a path. All of
it also answers under /api.
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
"""Names that one answer lists."""
LONGEST_ADDRESS = 400
"""Characters of a name in an address."""
_STARTED = secrets.token_hex(4)
"""Tells what this server said from what one before it said."""
_WHOLE_PATH = re.compile(r"(?<![\w.:/\\])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\'\"]+[/\\])+")
"""Folders at the beginning of a path that starts at the root, but for those with spaces."""
_log = logging.getLogger(__name__)

Handler = Callable[["web.Request"], Awaitable["web.Response"]]


def listed_dictionaries() -> dict[str, object]:
    """Files that may be dictionaries, with their sizes in bytes; what they hold is looked at only when they are opened."""
    names = dictionary_names()
    facts = []
    for name in names[:MOST_DICTIONARIES]:
        # a link that leads nowhere, or a file that went meanwhile, must not take the others away
        with contextlib.suppress(OSError, BestiaryError):
            facts.append({"name": name, "called": name_of_file(name), "bytes": concept_path(name).stat().st_size})
    return {"dictionaries": facts, "more": max(0, len(names) - MOST_DICTIONARIES)}


@functools.cache
def add_routes() -> bool:
    """Offers the routes, once; False where there is no server, as in tests. To be called before ComfyUI starts to serve."""
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
    """GET /bestiary/newest_run/NAME?kind=parts: the newest run that a training of this name made; `run` is null without one."""
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
    """GET /bestiary/newest_discovery/NODE?workflow=ID&client=ID: key of a node's newest discovery; null where none is kept."""
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
    """GET /bestiary/discovered/KEY/picture?number=0: a picture that was looked at, WebP."""
    from .part_map.found_parts import picture_of

    return await _answer(request, *_discovered(request, picture_of))


async def show_discovered_labels(request: web.Request) -> web.Response:
    """GET /bestiary/discovered/KEY/labels?number=0: numbers of the found parts on the patch grid, PNG."""
    from .part_map.found_parts import labels_of

    return await _answer(request, *_discovered(request, labels_of), "image/png")


def unpack_text(packed: str) -> str:
    """Text from its address form: UTF-8, raw deflate, base64 with - and _ instead of + and /.

    Raises:
        BestiaryError: it is no such thing, or longer than edits may be.
    """
    from ..concepts.part_map.edit_script import LONGEST_SCRIPT

    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # no more than the longest text is unpacked, whatever the address promises
        plain = inflate.decompress(base64.urlsafe_b64decode(packed), 4 * LONGEST_SCRIPT + 1)
        return plain.decode()
    except (binascii.Error, zlib.error, ValueError) as fault:
        raise BestiaryError(f"packed edits of {len(packed)} characters cannot be read: {fault}") from fault


def _discovered(
    request: web.Request, read: Callable[[str, int], bytes]
) -> tuple[Callable[[], str], Callable[[], bytes]]:
    """Stamp and content of a picture of a discovery."""
    key, asked = request.match_info["key"], request.query.get("number", "")

    def content() -> bytes:
        if not (asked.isdecimal() and len(asked) <= 6):
            raise BestiaryError(f"picture must be a non-negative integer, got {asked[:20]!r}")
        return read(key, int(asked))

    return lambda: _discovery_stamp(key, asked), content


def _discovery_stamp(key: str, asked: str) -> str:
    """What a key stands for never changes while the server runs; empty where it is not kept."""
    from .part_map.found_parts import DISCOVERIES

    return (
        f"{_STARTED}-{key}-{hashlib.sha256(asked.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        if DISCOVERIES.has(key)
        else ""
    )


@functools.cache
def _pages() -> ThumbnailPages:
    """One for all answers, as it keeps what it has cut."""
    from .part_dictionary.dictionary_listing import ThumbnailPages

    return ThumbnailPages()


def _known(name: str) -> Path:
    if len(name) > LONGEST_ADDRESS:
        raise BestiaryError(f"name too long: {len(name)} characters, at most {LONGEST_ADDRESS}")
    return concept_path(name)


def _unstamped() -> str:
    """The stamp of what is always told anew."""
    return ""


class _Found(NamedTuple):
    """What was found off the event loop."""

    stamp: str
    content: object = None
    fault: str = ""


async def _answer(
    request: web.Request, stamp: Callable[[], str], content: Callable[[], object], kind: str = "image/webp"
) -> web.Response:
    """JSON, or a picture of this kind, or what is wrong as JSON; nothing but a header where the browser has it already.

    `stamp` changes with the content and is empty where there is none; it and `content` look at the disk and run in a thread.
    """
    from aiohttp import web

    found = await asyncio.to_thread(_look, request.path, request.headers.get("If-None-Match"), stamp, content)
    # revalidated each time: a dictionary that was trained further shows its new thumbnails at once
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
    """Stamp and content of an answer; no content where the browser knows this stamp already."""
    own = ""
    try:
        own = stamp()
        return _Found(own) if own and known == f'"{own}"' else _Found(own, content())
    except (BestiaryError, OSError) as fault:
        _log.info("%s: %s", path, fault)
        return _Found(own, fault=_plain_fault(fault))


def _plain_fault(fault: Exception) -> str:
    """The message without the folders of this machine."""
    if isinstance(fault, OSError):
        return f"could not be read: {fault.strerror or 'unknown reason'}"
    text = str(fault)
    for folder in _folders():
        text = text.replace(f"{folder}/", "").replace(f"{folder}\\", "")
    # and whatever else is a whole path: its last name says enough
    return _WHOLE_PATH.sub("", text)


def _folders() -> list[str]:
    """Folders that a message may name, the longest first; they may hold spaces."""
    import folder_paths

    roots = [
        folder_paths.base_path,
        folder_paths.models_dir,
        folder_paths.get_output_directory(),
        str(SHIPPED),
        str(Path.home()),
    ]
    roots += folder_paths.get_folder_paths(FOLDER)
    return sorted({form for root in roots for form in (str(root), os.path.realpath(root))}, key=len, reverse=True)
