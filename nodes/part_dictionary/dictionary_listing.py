"""Part dictionaries for the browser: names, numbers and thumbnails, without vectors.

Only the tables of a file are read, each up to a maximum size, so that many dictionaries with large adapters are listed
quickly, and a malicious file is harmless. Texts are not escaped: the page must insert them as text, not as HTML.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import DICTIONARY_KIND, LARGEST_HEADER, Header, from_text_tensor, read_header
from ...concepts.files.file_schema import checked_table
from ...concepts.files.thumbnail_atlas import ThumbnailAtlas
from ...concepts.name_search import typed_number
from ...concepts.part_dictionary.part_dictionary import THUMBNAIL_PREFIX

LARGEST_TENSORS = {"names": 8 << 20, "rows": 4 << 20, "picture": 24 << 20, "index": 4 << 20, "shape": 64}
"""Maximum number of values per table."""
LONGEST_NAME = 120
"""Maximum characters of a name; longer names are cut, and their mentions use the number."""
TILES_A_PAGE = 100
"""Thumbnails per picture loaded by the browser; a page of 96-pixel tiles has 960 x 960 pixels."""
PAGE_COLUMNS = 10
KEPT_PAGES = 4
"""Dictionaries whose pages stay in memory, about 3 MB for 5,000 kinds."""
_SPECIAL_IN_PART, _SPECIAL_IN_KIND = re.compile(r"[\\.:<>]"), re.compile(r"[\\:*+@<>]")
"""Special characters of a mention, which need a backslash (concepts/part_prompt/mention_writing.py)."""


@dataclass(frozen=True)
class ListedTables:
    """The tables of a dictionary file, without vectors."""

    header: Header
    tensors: dict[str, Tensor]
    """`rows` (R, 2), `names` (bytes,), and the tensors of the atlas."""

    @property
    def atlas(self) -> ThumbnailAtlas | None:
        """The thumbnails, None if there are none.

        Raises:
            BestiaryError: they are damaged.
        """
        pictures = {name: self.tensors[name] for name in ("picture", "index", "shape") if name in self.tensors}
        if "index" in pictures and (pictures["index"].ndim != 2 or pictures["index"].shape[1] != 2):
            raise BestiaryError(
                f"the thumbnails are damaged: their index has shape {tuple(pictures['index'].shape)}, expected (tiles, 2)"
            )
        return ThumbnailAtlas.from_tensors(pictures) if pictures else None


def read_tables(path: Path) -> ListedTables:
    """Read names, rows and thumbnails.

    Raises:
        BestiaryError: not a dictionary, damaged, or with tables beyond `LARGEST_TENSORS`.
    """
    header = read_header(path, LARGEST_HEADER)
    if header.kind != DICTIONARY_KIND:
        raise BestiaryError(f"{path.name} is {header.kind or 'a file of another program'}, not a part dictionary")
    places = {name.removeprefix(THUMBNAIL_PREFIX): name for name in header.entries if not name.startswith("lora.")}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name, largest in LARGEST_TENSORS.items():
                if name not in places:
                    continue
                # check the size in the header first: an oversized table is never read into memory
                count = math.prod(header.entries[places[name]].shape)
                if count > largest:
                    raise BestiaryError(
                        f"{path.name}: its table {name} has {count:,} values, at most {largest:,} can be listed"
                    )
                tensors[name] = file.get_tensor(places[name])
    except (SafetensorError, OSError, ValueError) as fault:
        raise BestiaryError(f"{path.name} is damaged: {fault}") from fault
    if not {"names", "rows"} <= tensors.keys() or tensors["rows"].ndim != 2 or tensors["rows"].shape[1] != 2:
        raise BestiaryError(f"{path.name} is damaged: its names or rows are missing")
    return ListedTables(header, tensors)


def list_dictionary(path: Path) -> dict[str, object]:
    """Parts, kinds and thumbnail positions as JSON values; `part_names` includes parts without kinds.

    Per part: `number`, `name`, `written` (in prompt syntax), `background`, and columns over its kinds: `numbers` as typed by
    users, `names` (null if unnamed), `written` and `tiles` (-1 for none). `atlas_fault`: why thumbnails cannot be read.

    Raises:
        BestiaryError: see `read_tables`, or names and rows are inconsistent.
    """
    tables = read_tables(path)
    concept = tables.header.concept
    parts, kinds = _names(tables, path)
    # users of a 1-based dictionary type numbers from 1 on, while the file stores them from 0
    base = 1 if concept.get("id_base") == 1 else 0
    try:
        atlas, fault = tables.atlas, None
    except BestiaryError as broken:
        atlas, fault = None, str(broken)
    tile_of = {pair: tile for tile, pair in enumerate(atlas.index)} if atlas else {}
    known: dict[int, list[int]] = {}
    for part, kind in sorted(set(map(tuple, tables.tensors["rows"].tolist()))):
        known.setdefault(part, []).append(kind)
    if min(known, default=0) < 0 or max(known, default=0) >= len(parts):
        raise BestiaryError(f"{path.name} is damaged: its rows refer to a part without a name")
    same_name = Counter(parts[part].strip() for part in known)
    return {
        "backbone": str(concept.get("backbone"))[:LONGEST_NAME],
        "id_base": base,
        "part_names": [_shown(name) for name in parts],
        "background": concept.get("background") if isinstance(concept.get("background"), int) else None,
        "parts": [
            {
                "number": part,
                "name": _shown(parts[part]) or str(part),
                "written": _escaped(parts[part].strip(), _SPECIAL_IN_PART)
                if _unique(parts[part], same_name)
                else str(part),
                "background": part == concept.get("background"),
                "kinds": _columns(part, numbers, kinds[part], base, tile_of),
            }
            for part, numbers in known.items()
        ],
        "atlas": _page_facts(atlas) if atlas else None,
        "atlas_fault": fault,
    }


def _columns(
    part: int, stored: list[int], names: dict[int, str], base: int, tile_of: dict[tuple[int, int], int]
) -> dict[str, list]:
    """The kinds of a part as columns, which are smaller in JSON than records."""
    # a name that occurs twice cannot be used in a mention: write the number instead
    same_name = Counter(names[kind].strip() for kind in stored if kind in names)
    by_name = [kind in names and _unique(names[kind], same_name) for kind in stored]
    return {
        "numbers": [kind + base for kind in stored],
        "names": [_shown(names[kind]) if kind in names else None for kind in stored],
        "written": [
            _escaped(names[kind], _SPECIAL_IN_KIND) if named else str(kind + base)
            for kind, named in zip(stored, by_name, strict=True)
        ],
        "tiles": [tile_of.get((part, kind), -1) for kind in stored],
    }


def _escaped(name: str, special: re.Pattern[str]) -> str:
    return special.sub(r"\\\g<0>", name)


def _unique(name: str, same_name: Counter[str]) -> bool:
    """True if a mention can use this name: it is unique and not a number."""
    spelt = name.strip()
    return len(spelt) > 0 and len(name) <= LONGEST_NAME and same_name[spelt] == 1 and typed_number(spelt) is None


def _shown(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _names(tables: ListedTables, path: Path) -> tuple[list[str], list[dict[int, str]]]:
    """Names of the parts, and per part the names of its kinds by stored number."""
    try:
        table = checked_table(from_text_tensor(tables.tensors["names"]), "the table of names", ("parts", "kinds"))
        kinds = [{int(kind): str(name) for kind, name in named.items()} for named in table["kinds"]]
        parts = [str(name) for name in table["parts"]]
    except (BestiaryError, KeyError, TypeError, ValueError, AttributeError) as fault:
        raise BestiaryError(f"{path.name} is damaged: its table of names cannot be read ({fault})") from fault
    if len(parts) != len(kinds):
        raise BestiaryError(f"{path.name} is damaged: {len(parts)} parts, but {len(kinds)} lists of kinds")
    return parts, kinds


def _page_facts(atlas: ThumbnailAtlas) -> dict[str, int]:
    pages = math.ceil(len(atlas.index) / TILES_A_PAGE)
    columns = atlas.columns if pages == 1 else PAGE_COLUMNS
    return {"tile": atlas.tile_size, "columns": columns, "per_page": TILES_A_PAGE, "pages": pages}


class ThumbnailPages:
    """Thumbnail atlases cut into pages for the browser, with a cache of the last few dictionaries."""

    def __init__(self) -> None:
        """Empty."""
        self._pages: OrderedDict[tuple[Path, str], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, path: Path, stamp: str, number: int) -> bytes:
        """WebP bytes of one page, counted from 0; `stamp` changes with the file.

        Raises:
            BestiaryError: no thumbnails, damaged thumbnails, or no such page.
        """
        # the lock serialises requests: twenty pages of a new atlas must not decode it twenty times
        with self._lock:
            # removed and inserted again below, so that the order is that of the last use
            pages = self._pages.pop((path, stamp), None)
            if pages is None:
                atlas = read_tables(path).atlas
                pages = cut_pages(atlas) if atlas else []
            self._pages[path, stamp] = pages
            while len(self._pages) > KEPT_PAGES:
                self._pages.popitem(last=False)
        if not 0 <= number < len(pages):
            raise BestiaryError(
                f"{path.name} has no page {number} of thumbnails: it has {len(pages)} pages, numbered from 0"
            )
        return pages[number]


def cut_pages(atlas: ThumbnailAtlas) -> list[bytes]:
    """The atlas as pages of `TILES_A_PAGE` tiles with `PAGE_COLUMNS` columns; large atlases are re-encoded.

    Raises:
        BestiaryError: the picture cannot be decoded.
    """
    if len(atlas.index) <= TILES_A_PAGE:
        # decode one tile, so that a damaged picture raises an error here instead of showing empty squares
        atlas.tile(*atlas.index[0])
        return [atlas.webp]
    edge, pages = atlas.tile_size, []
    for first in range(0, len(atlas.index), TILES_A_PAGE):
        pairs = atlas.index[first : first + TILES_A_PAGE]
        sheet = Image.new("RGB", (PAGE_COLUMNS * edge, math.ceil(len(pairs) / PAGE_COLUMNS) * edge))
        tiles = ((place, atlas.tile(*pair)) for place, pair in enumerate(pairs))
        for place, tile in ((place, tile) for place, tile in tiles if tile is not None):
            sheet.paste(tile, (place % PAGE_COLUMNS * edge, place // PAGE_COLUMNS * edge))
        stream = io.BytesIO()
        sheet.save(stream, "WEBP", quality=82, method=2)
        pages.append(stream.getvalue())
    return pages
